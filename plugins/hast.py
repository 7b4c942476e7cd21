"""HAST: Hard Sample Matters a Lot in Zero-Shot Quantization (Li et al., CVPR 2023): its images, and its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from zsqbench_plugins.shared.hard_samples import HardSampleQuantizer
from zsqbench_plugins.shared.labelled import InceptionGenerator
from zsqbench_plugins.shared.protocols import HAST_PROMOTION, RELEASED_PROMOTION

import zsqbench
from zsqbench.methods import Auto, auto
from zsqbench.methods.work import STEP

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.synthesis import BNGap, BNLoss

STATISTICS_WEIGHT, LAYERED_WEIGHT = 0.4, 0.02
"""Weights of BN statistics and of the statistics of centres, with `centre_iterations`."""

CENTRE_BETA, DEEP_WEIGHT, SHALLOW_WEIGHT = 5.0, 1.1, 0.2
"""Weights in the loss of centres: class loss, statistics of deeper layers, statistics of other layers."""

CENTRE_PLATEAU = (0.5, 0.1, 50, 0.05)
"""Learning rate, factor, patience and smallest learning rate of centres."""

_CENTRES = "centre_iterations"
_GAMMA = {"cifar10": 2.0, "cifar100": 2.0, "imagenet": 0.5}


class ZeroQIL(InceptionGenerator):
    """ZeroQ in batch form with an inception loss: statistics of the batch, and cross-entropy towards random labels.

    The baseline "ZeroQ+IL" of HAST's and IntraQ's tables (HAST, Eq. 3 to 5). It is not the method `zeroq`, which
    matches each image. It was not released by itself. It is HAST's code with gamma 0, which HAST's ablation calls its
    baseline. Each batch of 256 matches mean and variance at every BN layer, by mean squared gaps averaged over layers.
    `beta` times the mean cross-entropy is added. Adam optimises standard normal pixels.

    The default preset is `released`, HAST's code: beta 10 for CIFAR, without crops, and 0.1 for ImageNet. For ImageNet
    half of the iterations have crops of at least 40 % of the area. `paper` crops as in IntraQ, as the paper says: at
    least 50 %, for all data sets. The paper takes beta from IntraQ, which has no beta, so both presets have the code's
    beta.

    Deviations:

    - The last batch is smaller where `images` is not a multiple of `batch_size`.
    - The method is seeded. The release makes 5,120 images in four unseeded processes.
    """

    name = "zeroq_il"

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self = self.resolved(teacher)
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            return self.synthesize(teacher, ctx, self.towards_classes(bn_loss, ctx), ctx.resume() or {})


class HAST(InceptionGenerator):
    """Images that are hard to classify: `zeroq_il`, where a power of each sample's difficulty weighs its class loss.

    Difficulty is one minus the probability of the label (Eq. 7). Its power `gamma` weighs the cross-entropy (Eq. 8 and
    9), so that images stop before they are trivial. Gradients flow through the weight, as in the release. gamma is 2
    for CIFAR and 0.5 for ImageNet. This class is the synthesis; most of HAST's gain comes from its fine-tuning.

    `centre_iterations` adds TexQ's layered statistics as in SynQ's release (`--lbns`, 1500 iterations), which made
    SynQ's published images. First one image of each class is made, a centre. The other labels of these batches are
    class 0. The loss is the class loss, and statistics that count more in the deeper layers. Then images are also held
    to the moments of all centres together, in the deeper layers (`layered_gap`, weight 0.02), and statistics count 0.4.
    The release has no moments of a single class. TexQ's texture energy is neither in the release nor here.

    Presets and deviations are those of `zeroq_il`. In addition, difficulty is at least 1e-12. With gamma 0.5 the
    release makes NaN of an image whose label has all of the probability.
    """

    name = "hast"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
        preset: {name: {**values, "gamma": _GAMMA[name]} for name, values in data_sets.items()}
        for preset, data_sets in InceptionGenerator.presets.items()
    }

    gamma: Auto[float] = auto(ge=0, description="power of a sample's difficulty that weighs its class loss")
    centre_iterations: int = Field(
        0, ge=0, description="Adam steps for an image of each class, whose moments are matched too; 0 disables it"
    )

    def options(self) -> dict[str, Any]:
        """The options, without `centre_iterations` where it is 0, so that keys from before this option stay valid."""
        found = super().options()
        return found if self.centre_iterations else {name: found[name] for name in found if name != _CENTRES}

    def work(self, images: int) -> float:
        """The base's work, and a batch of centres before it."""
        return super().work(images) + STEP * self.centre_iterations * self.batch_size

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self, state = self.resolved(teacher), ctx.resume() or {}
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            if not self.centre_iterations:
                return self.synthesize(teacher, ctx, self.towards_classes(bn_loss, ctx, self.gamma), state)
            layers = _Layers.of(bn_loss, teacher, ctx)
            if "centres.mean" in state:
                centres = state["centres.mean"].to(ctx.device), state["centres.variance"].to(ctx.device)
            else:
                centres, state = self._centres(bn_loss, layers, teacher, ctx, state), {}

            def matched(gap: "BNGap") -> "Tensor":
                layered = layered_gap(gap.batch, centres, layers.channels, layers.deep)
                return STATISTICS_WEIGHT * gap.total + LAYERED_WEIGHT * layered / len(gap.seen.mean)

            losses = self.towards_classes(bn_loss, ctx, self.gamma, matched)
            kept = {"centres.mean": centres[0], "centres.variance": centres[1]}
            return self.synthesize(teacher, ctx, losses, state, keep=lambda: kept)

    def _centres(
        self,
        bn_loss: "BNLoss",
        layers: "_Layers",
        teacher: "Pretrained",
        ctx: "StepContext",
        state: Mapping[str, Any],
    ) -> "tuple[Tensor, Tensor]":
        """Mean and variance [T] of all centres. Raises ZSQBenchError for a network that is no classifier."""
        import torch

        from zsqbench.synthesis import PixelBatch, Plateau, class_logits, inception_loss, optimize

        if teacher.classes is None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} makes images of classes, and the network has none")
        shape = self.batch_size, *teacher.input_size
        labels = centre_labels(teacher.classes, self.batch_size).to(ctx.device)
        weights = torch.where(layers.deep, DEEP_WEIGHT, SHALLOW_WEIGHT)

        def measure(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
            gap = bn_loss(images, outputs=True)
            logits = class_logits(gap.seen.outputs, labels)
            return (weights * (gap.means + gap.moments)).mean(), CENTRE_BETA * inception_loss(logits, labels)

        compiled = ctx.compile(measure)

        def losses(pixels: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
            bn, inception = compiled(pixels, labels[step // self.centre_iterations])
            return bn + inception, {"bn_loss": bn, "inception_loss": inception}

        def begin(_: int, pixels: "Tensor | None") -> PixelBatch:
            pixels = ctx.randn(*shape) if pixels is None else pixels.to(ctx.device)
            return PixelBatch(pixels, torch.optim.Adam, Plateau(*CENTRE_PLATEAU), self.centre_iterations)

        order = [batch for batch in range(len(labels)) for _ in range(self.centre_iterations)]
        made = optimize(order, begin, losses, _OfCentres(ctx), state)
        with torch.no_grad():
            return pooled_moments([bn_loss(pixels).batch for pixels in made], [len(pixels) for pixels in made])


@dataclass(frozen=True)
class _Layers:
    """The batch normalisations of a network, in order of registration."""

    channels: list[int]
    deep: "Tensor"
    """True [L] for norms in the deeper part of a pass."""

    @classmethod
    def of(cls, bn_loss: "BNLoss", teacher: "Pretrained", ctx: "StepContext") -> "_Layers":
        import torch

        with torch.no_grad():
            seen = bn_loss.probes(torch.zeros(1, *teacher.input_size, device=ctx.device), outputs=False)
        return cls(seen.channels, torch.tensor(deep_layers(seen.order), device=ctx.device))


@dataclass(frozen=True)
class _OfCentres:
    """A context that names its curves as curves of centres."""

    ctx: "StepContext"

    def log(self, name: str, value: "float | Tensor", step: int = 0) -> None:
        self.ctx.log(f"centre_{name}", value, step)

    def progress(self, done: int, total: int) -> None:
        self.ctx.progress(done, total)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        self.ctx.checkpoint(state)


def centre_labels(classes: int, batch_size: int) -> "Tensor":
    """Labels [batches, batch_size] of one image of each class, in order. The rest of the last batch is class 0."""
    import torch

    labels = torch.zeros(-(-classes // batch_size) * batch_size, dtype=torch.int64)
    labels[:classes] = torch.arange(classes)
    return labels.view(-1, batch_size)


def deep_layers(order: "Sequence[int]") -> list[bool]:
    """True for a layer, by its number, that a pass reaches at place (L + 2) // 2 - 2 or later.

    Places are counted from 0, and L is the number of layers.
    """
    first = (len(order) + 2) // 2 - 2
    place = {layer: number for number, layer in enumerate(order)}
    return [place[layer] >= first for layer in range(len(order))]


def pooled_moments(moments: "Sequence[tuple[Tensor, Tensor]]", sizes: "Sequence[int]") -> "tuple[Tensor, Tensor]":
    """Mean and variance [T] of batches of these sizes together, from those of each batch, as in SynQ's release.

    The variance is the variance within batches plus the variance of their means. The first batch's own variance counts
    once, not by its size, so the result is too small. This mistake of the release is kept.
    """
    import torch

    means, variances = (torch.stack(each) for each in zip(*moments, strict=True))
    counts = means.new_tensor(sizes)[:, None]
    mean = (counts * means).sum(0) / counts.sum()
    between = (counts * (means - mean).square()).sum(0)
    within = variances[0] + (counts[1:] * variances[1:]).sum(0)
    return mean, (within + between) / counts.sum()


def layered_gap(
    moments: "tuple[Tensor, Tensor]", target: "tuple[Tensor, Tensor]", channels: "Sequence[int]", deep: "Tensor"
) -> "Tensor":
    """Mean squared gaps of a batch's mean and variance [T] to those of centres, summed over deep layers, divided by L.

    The release also divides by the number of images in the batch before it weighs the result.
    """
    import torch

    gaps = (moments[0] - target[0]).square() + (moments[1] - target[1]).square()
    of_layers = torch.stack([each.mean() for each in torch.split(gaps, list(channels))])
    return (of_layers * deep).sum() / len(channels)


class HASTTraining(HardSampleQuantizer):
    """A student that learns on images and on harder versions of them, with features aligned to the float network's.

    Each image is moved by `epsilon`, in normalised pixels, along the sign of the gradient of the loss that the student
    minimises. This promotes the image's difficulty. The student then learns from both images (`original_weight`,
    `promoted_weight`; Table 6). The loss is alpha T^2 KL, and `alignment_weight` (lambda) times the distance between
    attention vectors of the blocks' outputs before their additions (Eq. 11 to 14). There is no cross-entropy.

    The class follows the released code where the paper differs:

    - The loss of KL and alignment is promoted, not the student's error on a label. The paper's Table 5 agrees.
    - The gradient of this loss also goes through the float network.
    - The promoted image is compared with the float network's output for the promoted image.
    - lambda weighs the alignment only.
    - Attention vectors are normalised means, averaged over channels and summed over layers. `alignment:
      paper_attention` is Eq. 13 and 14 exactly, for which the published lambdas are far too large.
    - T is 20.

    `zsqbench.quant.block_outputs` chooses the layers.

    The default preset is `paper`: lambda and epsilon for each data set. The release's settings files also have them,
    but its parser never reads them. `released` has the parser's values: 1000 and 0.01 for all data sets. All other
    values and all deviations are those of `ste`, including ties between codes and images that fill no batch.
    """

    name = "hast"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": HAST_PROMOTION,
        "released": {name: {**values, **RELEASED_PROMOTION} for name, values in HAST_PROMOTION.items()},
    }


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide the quantizer `hast`."""
    return [HASTTraining]


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `zeroq_il` and `hast`."""
    return [ZeroQIL, HAST]
