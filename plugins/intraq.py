"""IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for ZSQ (Zhong et al., CVPR 2022)."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator
from zsqbench_plugins.shared.labelled import LabelledGenerator

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext

_CROPS = {"crop_probability": 0.5, "crop_scale": 0.5}
_CIFAR = {
    "cifar10": {**_CROPS, "target": 0.95, "nearest": 0.05, "farthest": 0.8},
    "cifar100": {**_CROPS, "target": 0.6, "nearest": 0.02, "farthest": 1.0},
}


class IntraQ(LabelledGenerator):
    """Images of random classes that differ within a class: random crops, soft targets, a band around class centres.

    Statistics are HAST's statistics of each batch, weight 1. The other terms each have weight 1:

    - Local object reinforcement: in half of the iterations, each image of a batch is cropped and flipped separately.
    - Soft inception loss: the mean squared gap of the label's probability to its target. The target is 1 for half of
      the images and uniform in [`target`, 1] for the others, drawn once.
    - Marginal distance constraint: the cosine distance of an image's penultimate features to a class centre stays
      between `nearest` and `farthest` (Eq. of the release). The centre is the mean feature of the finished images of
      the image's class. Two hinges are each averaged over the images whose class has a centre. The first batch has no
      centres.

    The default preset is `released`. Its script for ImageNet disables soft targets and margins (target 1, margins 0 and
    2). `paper` has for ImageNet the paper's values from memory (0.9, 0.3, 0.8), because its text could not be looked
    up. Values for CIFAR are the released ones in both presets.

    Deviations:

    - Features are the input of the network's last linear layer or 1 x 1 convolution, whatever its name.
    - The release runs four processes of five batches. Each process begins with the features of the earlier ones. Here
      they are one run.
    - The last batch is smaller where `images` is not a multiple of `batch_size`.
    - A cosine divides by lengths of at least 1e-8; the release has 1e-6. The length of a class centre is that of the
      sum of its features; the release takes the length of their mean.
    - The method is seeded.
    """

    name = "intraq"
    compiles = "pixels"
    presets: ClassVar[dict[str, dict[str, dict[str, float]]]] = {
        "released": {**_CIFAR, "imagenet": {**_CROPS, "target": 1.0, "nearest": 0.0, "farthest": 2.0}},
        "paper": {**_CIFAR, "imagenet": {**_CROPS, "target": 0.9, "nearest": 0.3, "farthest": 0.8}},
    }

    target: Auto[float] = auto(ge=0, le=1, description="lowest target for the probability of a label")
    nearest: Auto[float] = auto(
        ge=0, le=2, description="lower end of the band of cosine distances from the class centre"
    )
    farthest: Auto[float] = auto(
        ge=0, le=2, description="upper end of the band of cosine distances from the class centre"
    )

    @model_validator(mode="after")
    def _is_a_band(self) -> "IntraQ":
        if self.nearest is not None and self.farthest is not None and self.nearest > self.farthest:
            raise ValueError(f"nearest {self.nearest} is beyond farthest {self.farthest}")
        return self

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        import torch

        from zsqbench.synthesis import HAST, BNLoss, PenultimateFeatures, class_logits

        self, state = self.resolved(teacher), ctx.resume() or {}
        band = self.nearest, self.farthest
        with BNLoss(teacher.module, HAST) as bn_loss, PenultimateFeatures(teacher.module) as features:
            centres = _Centres(teacher, features, ctx, state)
            targets: Tensor = state["targets"] if state else self._draw_targets(ctx)
            of_batches = torch.split(targets.to(ctx.device), self.batch_size)

            def measure(
                images: "Tensor", labels: "Tensor", targets: "Tensor", sums: "Tensor", counts: "Tensor"
            ) -> "dict[str, Tensor]":
                gap = bn_loss(images, outputs=True)
                logits = class_logits(gap.seen.outputs, labels)
                near, far = marginal_distances(features.last, labels, sums, counts, *band)
                return {
                    "bn_loss": gap.total,
                    "soft_inception_loss": soft_inception_loss(logits, labels, targets),
                    "nearest_loss": near,
                    "farthest_loss": far,
                }

            compiled = ctx.compile(measure)

            def losses(images: "Tensor", labels: "Tensor", batch: int) -> "tuple[Tensor, dict[str, Tensor]]":
                parts = compiled(images, labels, of_batches[batch], centres.sums, centres.counts)
                first, *others = parts.values()
                return sum(others, first), parts

            def stepped(pixels: "Tensor", labels: "Tensor", step: int) -> None:
                if (step + 1) % self.iterations == 0:
                    centres.add(pixels, labels)

            return self.synthesize(
                teacher,
                ctx,
                losses,
                state,
                stepped=stepped,
                keep=lambda: {"targets": targets, "sums": centres.sums, "counts": centres.counts},
            )

    def _draw_targets(self, ctx: "StepContext") -> "Tensor":
        import torch

        hard, soft = ctx.rand(2, self.images)
        return torch.where(hard < 0.5, 1.0, self.target + (1 - self.target) * soft)  # noqa: PLR2004 - half of them


class _Centres:
    """Sums and numbers of the features of finished images, class by class."""

    def __init__(self, teacher: "Pretrained", features: Any, ctx: "StepContext", state: dict[str, Any]) -> None:
        import torch

        self._teacher, self._features = teacher, features
        with torch.no_grad():
            teacher.module(torch.zeros(1, *teacher.input_size, device=ctx.device))
        width = features.last.shape[1]
        classes = teacher.classes or 0
        self.sums = torch.zeros(classes, width, device=ctx.device)
        self.counts = torch.zeros(classes, device=ctx.device)
        if state:
            self.sums.copy_(state["sums"])
            self.counts.copy_(state["counts"])

    def add(self, pixels: "Tensor", labels: "Tensor") -> None:
        import torch

        with torch.no_grad():
            self._teacher.module(pixels)
            self.sums.index_add_(0, labels, self._features.last.float())
            self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))


def soft_inception_loss(logits: "Tensor", labels: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean squared gap between the probability of each label and its target [N]. Other classes are ignored."""
    probabilities = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (probabilities - targets).square().mean()


def marginal_distances(
    features: "Tensor", labels: "Tensor", sums: "Tensor", counts: "Tensor", nearest: float, farthest: float
) -> "tuple[Tensor, Tensor]":
    """Distances by which features [N, F] are inside and beyond the band around the centres of their classes.

    The centre of a class is the mean of `counts` features, whose sums are `sums`. Images of classes without features do
    not count. Distances are one minus the cosine.
    """
    from torch.nn import functional

    found = (counts[labels] > 0).float()
    distances = 1 - functional.cosine_similarity(features.float(), sums[labels], eps=1e-8)
    number = found.sum() + 1e-6
    near = ((nearest - distances).clamp_min(0) * found).sum() / number
    far = ((distances - farthest).clamp_min(0) * found).sum() / number
    return near, far


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `intraq`."""
    return [IntraQ]
