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
"""Pixels that the images are rolled by at most before the release takes their smoothness."""


class DSG(zsqbench.PixelGenerator):
    """ZeroQ's images, diversified: gaps within a margin are free, and each image emphasises a layer of its own.

    Slack distribution alignment: each image's mean and deviation at a layer may be off by the layer's margin, which is
    the quantile `margin` of the gaps that Gaussian noise has. Layer-wise sample enhancement: the gaps of image i at
    layer i (modulo the number of layers) are doubled before they are squared. Else the loss is ZeroQ's release, which
    DSG's is a fork of, with images that start uniform in [0, 1).

    A reconstruction: the margins of the release come from files that are not in its repository, no code computes them,
    and the quantile 0.9 is from memory of the paper, whose text could not be looked up. The default preset is `paper`,
    these two parts alone. `released` is the PTQ branch of the repository of 2023, an extension: emphasis for layers 0
    to 19 of images 0 to 19 only; a sample correlation term (eigenvalues and eigenvectors of the images' cosine matrix
    against those of fresh noise, by the number of layers); twice the cross-entropy towards random labels, so the
    network must be a classifier; 0.01 times total variation and 0.01 times the mean norm of the images.

    Deviations: `dsg_il` is the row "DSG+IL" of HAST's and IntraQ's tables, and this is not; further batches where
    `images` exceeds `batch_size`; a layer with 1x1 maps has no deviation term; seeded.
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
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from dataclasses import replace

        import torch

        from zsqbench.synthesis import ZEROQ, BNLoss

        self, state = self.resolved(teacher), ctx.resume() or {}
        extended = self.extended
        if extended and teacher.classes is None:
            raise zsqbench.ZSQBenchError(
                "generator 'dsg' needs a classifier where it is extended, as its preset released is"
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
        """What the gaps of each image [N] at each layer [L] are multiplied by: 1 or 2."""
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

    The baseline "DSG+IL" of HAST's and IntraQ's tables. No released code is it, so this is a reconstruction: `zeroq_il`
    where gaps of a layer count beyond a margin only, the quantile `margin` of the absolute gaps of its channels for
    Gaussian noise. Statistics are those of a batch, so there is no image that could emphasise a layer.

    Margins are those of all `margin_images` together, not of a batch of 256. The presets are `zeroq_il`'s, and so are
    the other deviations.
    """

    name = "dsg_il"
    margin: float = Field(
        0.9, ge=0, le=1, description="quantile of the gaps of Gaussian noise up to which gaps are free"
    )
    margin_images: int = Field(1024, gt=0, description="images of Gaussian noise on which margins are measured")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench.synthesis import HAST, BNLoss

        self, state = self.resolved(teacher), ctx.resume() or {}
        with BNLoss(teacher.module, HAST) as bn_loss:
            kept = _with_margins(bn_loss, state, self.margin, self.margin_images, teacher, ctx)
            losses = self.towards_classes(bn_loss, ctx)
            return self.synthesize(teacher, ctx, losses, state, keep=lambda: kept)


def _with_margins(
    bn_loss: "BNLoss", state: dict[str, Any], margin: float, images: int, teacher: "Pretrained", ctx: "StepContext"
) -> "dict[str, Tensor]":
    """Allow the margins of a checkpoint, or else those of Gaussian noise; returns what the next one keeps."""
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
    """What the repository of 2023 adds to the loss."""
    from zsqbench.synthesis import class_logits, inception_loss, total_variation

    rolled = pixels.roll([int(ctx.rand(1) * (2 * PRIOR_SHIFT + 1)) - PRIOR_SHIFT] * 2, (2, 3))
    return {
        "correlation_loss": correlation_loss(pixels, ctx.randn(*pixels.shape)) / layers,
        "inception_loss": 2 * inception_loss(class_logits(outputs, labels), labels),
        "variation_loss": 0.01 * total_variation(rolled),
        "norm_loss": 0.01 * pixels.flatten(1).norm(dim=1).mean(),
    }


def correlation_loss(images: "Tensor", noise: "Tensor") -> "Tensor":
    """How far the spectrum of the images' cosine matrix [N, N] is from that of noise, in values and directions."""
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
