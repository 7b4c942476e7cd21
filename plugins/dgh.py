"""DGH: Data Generation for Hardware-friendly post-training quantization (Dikstein et al., WACV 2025)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.synthesis import BNGap, BNLoss, RawOutputs, SmoothedCrops

PUBLISHED_WEIGHTS = {
    "resnet18": 3e-7,
    "resnet50": 1e-7,
    "resnet50b": 1e-7,
    "mobilenet_v2": 3e-5,
    "mobilenetv2": 3e-5,
    "mobilenetv2_100": 3e-5,
    "mobilenetv2_w1": 3e-5,
    "mobilenetv2b_w1": 3e-5,
}
"""Weights of the output loss in the release, by the names of networks in torchvision, BRECQ, timm and pytorchcv."""

USUAL_WEIGHT = 1e-5
"""Weight for every network in the authors' own library, Sony's Model Compression Toolkit."""

PUBLISHED_BATCHES = 8
"""Memory batches of the release: 1,024 images, 128 at a time."""


class DGH(zsqbench.Generator):
    """Images that together match the statistics of every BN layer, seen through flips, blur and crops.

    The method has three parts, each with its switch. Statistics are those of all images (`scope`; Eq. 5), although only
    one memory batch is in the network at a time. Images are preprocessed (`image_pipeline`). A loss stretches the range
    of the network's outputs (`output_weight`; Eq. 6 and 7). Without these parts (`scope: batch`, false, 0), the method
    matches each batch.

    Where the paper is silent, the class follows the released code (ssi-research/DGH):

    - The weight of deviations is 10; the paper reads as 1.
    - The input is one more layer, and the slack is 0.5.
    - Each batch has an optimiser and a plateau schedule that forgets its best loss.
    - Whole batches are flipped and cropped alike.
    - Gradients pass the clamp unchanged.
    - The constraint of the output loss counts once for each output.
    - After a step, the kept statistics of its batch are those of the augmented images before the step. Only the input's
      statistics are those of the finished images.

    A batch has the whole output loss but only 1/n of the statistics. n is the number of memory batches whose statistics
    are matched together. So the balance of the two losses depends on n. The published weights are for n = 8. Here the
    weight is always `output_weight` * 8 / n. Another batch size, number of images or scope (n = 1 for `batch` and
    `image`) then keeps the balance. A smaller last batch counts by its share of images. The default is the published
    weight for ResNet-18 (3e-7), ResNet-50 (1e-7) and MobileNetV2 (3e-5), and 1e-5 for any other network.

    Memory grows with the number of images: by the pixels, twice as much for the optimiser, and two numbers for each
    batch and channel.

    Deviations:

    - Precision is float32 unless settings.precision says bf16, and always float32 for statistics. The release has fp16
      with a scaled loss.
    - Variances are merged without cancellation. The release needs an eps that grows until no root is NaN.
    - A smaller last batch weighs less.
    - Outputs are the tensors that the module returns, each flattened. The release takes the convolutions and linear
      layers that feed the end of an fx graph. A detector's outputs are those of the last layer of each head, over all
      levels of its pyramid, constrained once for all.
    - 1x1 maps have no deviation term. The output loss is constrained at the last BN of a pass that has larger maps.
    - Extra pixels are in proportion to the image. The release has 32 for 224.
    - Without the pipeline images are still clamped.
    - The method is seeded.
    """

    name = "dgh"
    compiles = "pixels"
    memory_options = ("batch_size",)
    version = 2
    needs_bn = True

    images: int = Field(1024, gt=0, description="size of the calibration set")
    batch_size: int = Field(128, gt=0, description="images in the network at a time")
    iterations: int = Field(1000, gt=0, description="RAdam steps for each batch")
    lr: float = Field(16.0, gt=0, description="learning rate of RAdam, in normalised pixels")
    scope: Literal["all", "batch", "image"] | Annotated[int, Field(gt=0)] = Field(
        "all",
        description="images whose statistics are matched together: all, a batch, one image, or groups of this number",
    )
    image_pipeline: bool = Field(True, description="flip, blur and crop images on their way to the network")
    output_weight: Auto[float] = auto(
        ge=0,
        description="weight of the output loss for 8 batches; 0 disables it; unset: the value published for "
        "this network",
    )
    std_weight: float = Field(10.0, ge=0, description="weight of deviations against means")
    slack: float = Field(0.5, ge=0, description="distance of features from normal that the output loss leaves free")
    extra_pixels: Auto[int] = auto(
        ge=0, description="height and width beyond the image's, for crops; unset: 32 for 224, in proportion"
    )
    filter_size: int = Field(3, gt=0, description="side of the blur in pixels; odd")
    filter_sigma: float = Field(1.25, gt=0, description="standard deviation of the blur, in pixels")
    factor: float = Field(0.5, gt=0, lt=1, description="factor of the learning rate on a plateau")
    patience: Auto[int] = auto(
        ge=0, description="steps without a better loss that make a plateau; unset: iterations / 50"
    )
    min_lr: float = Field(1e-4, ge=0, description="smallest learning rate")

    @model_validator(mode="after")
    def _fits(self) -> "DGH":
        if isinstance(self.scope, int) and self.batch_size % self.scope and self.scope % self.batch_size:
            raise ValueError(
                f"scope {self.scope} does not fit batch_size {self.batch_size}: one must be a multiple of the other"
            )
        if self.filter_size % 2 == 0:
            raise ValueError(f"filter_size {self.filter_size} is even; a blur needs a central pixel")
        return self

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:  # noqa: ARG002 - needs no scheme
        """The published weight of this architecture, and the values that follow from image size and iterations."""
        return {
            "output_weight": published_weight(network.architecture),
            "extra_pixels": round(32 * max(network.input_size[1:]) / 224) if self.image_pipeline else 0,
            "patience": self.iterations // 50,
        }

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise all batches in turns; an interrupted run resumes from its last checkpoint."""
        from dataclasses import replace

        import torch

        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss, RawOutputs, optimize

        self, state = self.resolved(teacher), ctx.resume() or {}
        statistics = replace(synthesis.DGH, scope=self.scope, moment_weight=self.std_weight)
        with BNLoss(teacher.module, statistics) as bn_loss, RawOutputs(teacher.module, teacher.output_layers) as raw:
            run = _Run(self, teacher, ctx, bn_loss, raw, state)
            order = [batch for batch, *_ in run.visits]
            made = optimize(order, run.begin, run.losses, ctx, state, at_once=True, stepped=run.stepped, keep=run.keep)
        with torch.no_grad():
            images = torch.cat([run.pipeline.finalize(pixels.to(ctx.device)).cpu() for pixels in made])
        provenance = {"output_weight": run.output_weights[0], "memory_batches": len(run.sizes)}
        return zsqbench.CalibrationSet(images, provenance=provenance)

    def output_weight_of(self, share: float) -> float:
        """The output loss's weight for a batch with this share of the images that are matched together."""
        return self.output_weight * PUBLISHED_BATCHES * share

    @property
    def room(self) -> int:
        """Height and width of the optimised pixels beyond the image's."""
        return self.extra_pixels if self.image_pipeline else 0


def published_weight(architecture: str | None) -> float:
    """The weight of the output loss that the release has for an architecture, or the usual weight."""
    library, _, name = (architecture or "").partition("/")
    name = name.partition(".")[0] if library == "timm" else name  # timm/resnet18.a1_in1k: the tag names the weights
    return PUBLISHED_WEIGHTS.get(name, USUAL_WEIGHT)


class _Run:
    """The state of one call of `generate` between steps: the pipeline, the visits, statistics of all batches."""

    def __init__(
        self,
        options: DGH,
        teacher: "Pretrained",
        ctx: "StepContext",
        bn_loss: "BNLoss",
        raw: "RawOutputs",
        state: dict[str, Any],
    ) -> None:
        from zsqbench.synthesis import batch_sizes

        self.options, self.teacher, self.ctx, self.bn_loss, self.raw = options, teacher, ctx, bn_loss, raw
        self.sizes = batch_sizes(options.images, options.batch_size)
        self.pipeline = _pipeline(options, teacher, ctx)
        self.store = None
        if len(self.sizes) > 1:
            store = bn_loss.store(self.sizes, teacher.input_size[0])
            self.store = store if store.spans(options.scope) else None
        if self.store is not None and state:
            self.store.load(state)
        shares = [
            1.0 if self.store is None else self.store.share(batch, options.scope) for batch in range(len(self.sizes))
        ]
        self.output_weights = [options.output_weight_of(share) for share in shares]
        drawn = state.get("visits")
        if drawn is None:
            flips = 0.5 if options.image_pipeline else 0.0
            drawn = draw_visits(options.iterations, len(self.sizes), options.room, flips, ctx)
        self._drawn: Tensor = drawn
        self.visits: list[list[int]] = drawn.tolist()
        self._measure = ctx.compile(self._measure_eagerly)
        self._batch_moments: tuple[Tensor, Tensor] | None = None

    def begin(self, batch: int, pixels: "Tensor | None") -> Any:
        """Draw the pixels of a batch and store its statistics, or resume with given pixels."""
        import torch

        from zsqbench.synthesis import PixelBatch, Plateau, RectifiedAdam

        if pixels is None:
            pixels = initial_pixels(self.sizes[batch], self.options.room, self.teacher, self.ctx)
            if self.store is not None:
                with torch.no_grad():
                    self.store.put(batch, self.bn_loss(self.pipeline.finalize(pixels)).batch)
        options = self.options
        plateau = Plateau(options.lr, options.factor, options.patience, options.min_lr, reset=True)
        return PixelBatch(pixels.to(self.ctx.device), RectifiedAdam, plateau, options.iterations)

    def losses(self, pixels: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
        """The loss that a step minimises, and its parts."""
        batch, flip, top, left = self.visits[step]
        images = self.pipeline.augment(pixels, flip=bool(flip), top=top, left=left)
        stretched = self.output_weights[batch] > 0  # found here, else each batch would compile its own function
        bn_loss, output_loss, self._batch_moments = self._measure(images, batch, stretched)
        if output_loss is None:
            return bn_loss, {"bn_loss": bn_loss}
        return bn_loss + self.output_weights[batch] * output_loss, {"bn_loss": bn_loss, "output_loss": output_loss}

    def stepped(self, pixels: "Tensor", step: int) -> None:
        """Store the statistics of the batch: of the layers before the step, of the finished images after it."""
        import torch

        if self.store is not None and self._batch_moments is not None:
            batch = self.visits[step][0]
            self.store.put(batch, self._batch_moments)
            with torch.no_grad():
                self.store.put_input(batch, self.pipeline.finalize(pixels))

    def keep(self) -> dict[str, Any]:
        """The part of a checkpoint besides pixels and optimisers."""
        return {"visits": self._drawn} | ({} if self.store is None else self.store.state())

    def _measure_eagerly(
        self, images: "Tensor", batch: int, stretched: bool
    ) -> "tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]":
        gap = self.bn_loss(images, self.store, batch, outputs=stretched)
        return gap.total, self._output_loss(gap) if stretched else None, gap.batch

    def _output_loss(self, gap: "BNGap") -> "Tensor":
        from zsqbench.synthesis import stretching

        seen = gap.seen
        moments: tuple[Tensor, ...] = ()
        target: tuple[Tensor, ...] = ()
        with_maps = [index for index in seen.order if seen.counts[index] > 1]
        if with_maps:
            mean, variance, count = seen.layer(with_maps[-1])
            norm = list(self.bn_loss.probes.norms.values())[with_maps[-1]]
            moments = mean, (variance * count / (count - 1)).clamp_min(1e-30).sqrt()
            target = norm.running_mean, (norm.running_var + 1e-6).sqrt()
        each = not self.teacher.output_layers
        return stretching(self.raw.of(seen.outputs), moments, target, self.options.slack, constrain_each=each)


def initial_pixels(count: int, extra: int, teacher: "Pretrained", ctx: "StepContext") -> "Tensor":
    """Normal noise, clamped to valid values."""
    import torch

    channels, height, width = teacher.input_size
    low, high = (bound.to(ctx.device) for bound in teacher.valid_range())
    return torch.clamp(ctx.randn(count, channels, height + extra, width + extra), low, high)


def draw_visits(iterations: int, batches: int, room: int, flips: float, ctx: "StepContext") -> "Tensor":
    """All random numbers of the loop, drawn at once, so that no step waits for a GPU: int64 [steps, 4].

    Each row is a step: the batch, whether it is flipped, top and left of its crop. Each iteration visits all batches in
    its own order.
    """
    import torch

    draws = ctx.rand(iterations, batches, 4).cpu().double()
    order = draws[:, :, 0].argsort(1)
    corners = (draws[:, :, 2:] * (room + 1)).long()
    return torch.cat([order[:, :, None], (draws[:, :, 1:2] < flips).long(), corners], 2).flatten(0, 1)


def _pipeline(options: DGH, teacher: "Pretrained", ctx: "StepContext") -> "SmoothedCrops":
    from zsqbench.synthesis import SmoothedCrops, gaussian_line

    low, high = (bound.to(ctx.device) for bound in teacher.valid_range())
    line = gaussian_line(options.filter_size, options.filter_sigma) if options.image_pipeline else (1.0,)
    _, height, width = teacher.input_size
    return SmoothedCrops((height, width), low, high, line)


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `dgh`."""
    return [DGH]
