"""DSG: Diversifying Sample Generation for Accurate Data-Free Quantization (Zhang et al., CVPR 2021)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from zsqbench_plugins.shared.labelled import InceptionGenerator

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.synthesis import BNLoss

NOISE_BATCH = 64
"""Noise images in the network at a time while margins are measured."""

PRIOR_SHIFT = 30
"""Largest shift in pixels by which the release rolls the images before it measures their smoothness."""


class DSG(zsqbench.PixelGenerator):
    """ZeroQ's images, diversified: gaps within a margin are free, and each image emphasises its own layer.

    Slack distribution alignment: each image's mean and deviation at a layer may be off by the layer's margin. The
    margin is the quantile `margin` of the gaps of Gaussian noise. Layer-wise sample enhancement: the gaps of image i at
    layer i (modulo the number of layers) are doubled before they are squared. Otherwise the loss is that of ZeroQ's
    release, of which DSG's code is a fork. Images start uniform in [0, 1).

    This is a reconstruction. The release reads margins from files that are not in its repository, and no code computes
    them. The quantile 0.9 is from memory of the paper, whose text could not be looked up. The default preset is
    `paper`, these two parts alone. `released` is the PTQ branch of the repository of 2023, an extension with these
    changes:

    - Only images 0 to 19 emphasise a layer, layers 0 to 19.
    - A sample correlation term compares eigenvalues and eigenvectors of the images' cosine matrix with those of fresh
      noise, multiplied by the number of layers.
    - Twice the cross-entropy towards random labels is added, so the network must be a classifier.
    - 0.01 times total variation and 0.01 times the mean norm of the images are added.

    Deviations:

    - `dsg_il` is the row "DSG+IL" of HAST's and IntraQ's tables; this generator is not.
    - Further batches are made where `images` exceeds `batch_size`.
    - A layer with 1x1 maps has no deviation term.
    - The method is seeded.
    """

    name = "dsg"
    compiles = "pixels"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"emphasised": "all", "extended": False},
        "released": {"emphasised": 20, "extended": True},
    }

    preset: Literal["paper", "released"] = Field(
        "paper", description="paper: the two parts of the paper; released: all of the code"
    )
    images: int = Field(64, gt=0, description="size of the calibration set; 64 in the release's README")
    batch_size: int = Field(64, gt=0, description="images optimised together; they share the learning-rate schedule")
    iterations: int = Field(500, gt=0, description="Adam steps for each batch")
    lr: float = Field(0.9, gt=0, description="learning rate of Adam")
    patience: int = Field(260, ge=0, description="iterations without a better loss that make a plateau")
    margin: float = Field(
        0.9, ge=0, le=1, description="quantile of the gaps of Gaussian noise up to which gaps are free"
    )
    margin_images: int = Field(1024, gt=0, description="images of Gaussian noise on which margins are measured")
    enhancement: bool = Field(True, description="let each image emphasise a layer")
    emphasised: Auto[Literal["all"] | Annotated[int, Field(gt=0)]] = auto(
        description="number of first images that emphasise a layer, image i layer i; all: every image, layers in turns"
    )
    extended: Auto[bool] = auto(description="add the terms of the repository of 2023 to the loss; needs a classifier")
    pairing: Literal["conv_output", "bn_input"] = Field(
        "conv_output",
        description="tensors whose statistics are compared with BN statistics: outputs of convolutions, "
        "paired by order, or BN inputs",
    )

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from dataclasses import replace

        import torch

        from zsqbench.synthesis import ZEROQ, BNLoss

        self, state = self.resolved(teacher), ctx.resume() or {}
        extended = self.extended
        if extended and teacher.classes is None:
            raise zsqbench.ZSQBenchError(
                "generator 'dsg' needs a classifier where it is extended, as in its preset released"
            )
        with BNLoss(teacher.module, replace(ZEROQ, hook_point=self.pairing)) as bn_loss:
            kept = _with_margins(bn_loss, state, self.margin, self.margin_images, teacher, ctx)
            layers = len(bn_loss.probes.norms)
            if extended:
                kept["labels"] = state["labels"] if state else _random_labels(self.images, teacher, ctx)
                of_batches = torch.split(kept["labels"].to(ctx.device), self.batch_size)
            emphases = torch.split(self.emphasis(layers).to(ctx.device), self.batch_size)

            def measure(pixels: "Tensor", emphasis: "Tensor") -> "tuple[Tensor, Any]":
                gap = bn_loss(pixels, outputs=extended, emphasis=emphasis)
                return gap.total, gap.seen.outputs

            compiled = ctx.compile(measure)

            def losses(pixels: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
                batch = step // self.iterations
                loss, outputs = compiled(pixels, emphases[batch])
                if not extended:
                    return loss, {"bn_loss": loss}
                parts = {"bn_loss": loss, **_extension(pixels, outputs, of_batches[batch], layers, ctx)}
                return torch.stack(list(parts.values())).sum(), parts

            images = self.optimize(teacher, ctx, losses, state, initial=_uniform, keep=lambda: kept)
        return zsqbench.CalibrationSet(images, kept["labels"].cpu() if extended else None)

    def emphasis(self, layers: int) -> "Tensor":
        """The factors of the gaps of each image [N] at each layer [L]: 1 or 2."""
        import torch

        factors = torch.ones(self.images, layers)
        if self.enhancement:
            count, period = self.images, layers
            if self.emphasised != "all":
                count, period = min(self.images, self.emphasised), self.emphasised
            for image in range(count):
                if image % period < layers:
                    factors[image, image % period] = 2
        return factors


class DSGIL(InceptionGenerator):
    """DSG with an inception loss: HAST's pipeline, whose statistics of the batch have DSG's margins.

    The baseline "DSG+IL" of HAST's and IntraQ's tables. No code of it was released, so this is a reconstruction. It is
    `zeroq_il` where gaps of a layer count only beyond a margin. The margin is the quantile `margin` of the absolute
    gaps of the layer's channels for Gaussian noise. Statistics are those of a batch, so no single image can emphasise a
    layer.

    Margins are those of all `margin_images` together, not of a batch of 256. The presets and the other deviations are
    those of `zeroq_il`.
    """

    name = "dsg_il"
    margin: float = Field(
        0.9, ge=0, le=1, description="quantile of the gaps of Gaussian noise up to which gaps are free"
    )
    margin_images: int = Field(1024, gt=0, description="images of Gaussian noise on which margins are measured")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from zsqbench.synthesis import HAST, BNLoss

        self, state = self.resolved(teacher), ctx.resume() or {}
        with BNLoss(teacher.module, HAST) as bn_loss:
            kept = _with_margins(bn_loss, state, self.margin, self.margin_images, teacher, ctx)
            losses = self.towards_classes(bn_loss, ctx)
            return self.synthesize(teacher, ctx, losses, state, keep=lambda: kept)


def _with_margins(
    bn_loss: "BNLoss", state: dict[str, Any], margin: float, images: int, teacher: "Pretrained", ctx: "StepContext"
) -> "dict[str, Tensor]":
    """Set the margins of a checkpoint, or else those of Gaussian noise. Returns the entries of the next checkpoint."""
    from zsqbench.synthesis import batch_sizes

    margins = state.get("margins")
    if margins is None:
        noise = (ctx.randn(size, *teacher.input_size) for size in batch_sizes(images, NOISE_BATCH))
        margins = bn_loss.gap_quantiles(noise, margin)
    bn_loss.allow(margins)
    return {"margins": margins}


def _random_labels(count: int, teacher: "Pretrained", ctx: "StepContext") -> "Tensor":
    import torch

    return torch.randint(teacher.classes or 1, (count,), generator=ctx.rng, device=ctx.device)


def _uniform(shape: tuple[int, ...], ctx: "StepContext") -> "Tensor":
    return ctx.rand(*shape)


def _extension(
    pixels: "Tensor", outputs: Any, labels: "Tensor", layers: int, ctx: "StepContext"
) -> "dict[str, Tensor]":
    """The terms that the repository of 2023 adds to the loss."""
    from zsqbench.synthesis import class_logits, inception_loss, total_variation

    rolled = pixels.roll([int(ctx.rand(1) * (2 * PRIOR_SHIFT + 1)) - PRIOR_SHIFT] * 2, (2, 3))
    return {
        "correlation_loss": correlation_loss(pixels, ctx.randn(*pixels.shape)) / layers,
        "inception_loss": 2 * inception_loss(class_logits(outputs, labels), labels),
        "variation_loss": 0.01 * total_variation(rolled),
        "norm_loss": 0.01 * pixels.flatten(1).norm(dim=1).mean(),
    }


def correlation_loss(images: "Tensor", noise: "Tensor") -> "Tensor":
    """Distance between the spectra of two cosine matrices [N, N], of images and noise, in values and directions."""
    values, vectors = _spectrum(images)
    expected, directions = _spectrum(noise)
    weights = (expected - expected.min()) / (expected.max() - expected.min()).clamp_min(1e-12)
    overlaps = (vectors * directions).sum(0)
    return 1e-4 * (values - expected).square().mean() + (weights * -overlaps).sum().abs()


def _spectrum(images: "Tensor") -> "tuple[Tensor, Tensor]":
    import torch
    from torch.nn import functional

    lines = functional.normalize(images.flatten(1), dim=1)
    values, vectors = torch.linalg.eigh(lines @ lines.T)
    return values, vectors


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `dsg` and `dsg_il`."""
    return [DSG, DSGIL]
