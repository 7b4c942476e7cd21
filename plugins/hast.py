"""HAST: Hard Sample Matters a Lot in Zero-Shot Quantization (Li et al., CVPR 2023): its images, and its baseline's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from zsqbench import CalibrationSet, Pretrained, StepContext

_GAMMA = {"cifar10": 2.0, "cifar100": 2.0, "imagenet": 0.5}


class ZeroQIL(zsqbench.InceptionGenerator):
    """ZeroQ in batch form with an inception loss: statistics of the batch, and cross-entropy towards random labels.

    The baseline "ZeroQ+IL" of HAST's and IntraQ's tables (HAST, Eq. 3 to 5), and not the method `zeroq`, which matches
    each image. Nobody released it by itself; it is HAST's code with gamma 0, which HAST's ablation calls its baseline:
    mean and variance of each batch of 256 at every BN layer, mean squared gaps averaged over layers, plus `beta` times
    the mean cross-entropy; Adam on standard normal pixels.

    The default preset is `released`, HAST's code: beta 10 for CIFAR, without crops, and 0.1 for ImageNet, with crops of
    40 % of the area at least in half of the iterations. `paper` crops as in IntraQ, as the paper says: 50 % at least,
    for all data sets. The paper takes beta from IntraQ, too, which has none, so it is the code's in both.

    Deviations: a smaller last batch where `images` is no multiple of `batch_size`; seeded (the release makes 5,120
    images in four unseeded processes).
    """

    name = "zeroq_il"

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench.synthesis import HAST, BNLoss

        with BNLoss(teacher.module, HAST) as bn_loss:
            return self.synthesise(teacher, ctx, self.towards_classes(bn_loss, teacher, ctx), ctx.resume() or {})


class Hast(zsqbench.InceptionGenerator):
    """Images that are hard to classify: `zeroq_il`, where each sample's class loss counts by its difficulty to a power.

    Difficulty is one minus the probability of the label (Eq. 7), and its power `gamma` weighs the cross-entropy (Eq. 8
    and 9), so that images stop before they are trivial. Gradients flow through the weight, as in the release. gamma is
    2 for CIFAR and 0.5 for ImageNet. This is the synthesis; most of HAST's gain comes from its fine-tuning.

    Presets and deviations are those of `zeroq_il`; besides, difficulty is at least 1e-12, for with gamma 0.5 the
    release makes NaN of an image whose label has all of the probability.
    """

    name = "hast"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
        preset: {name: {**values, "gamma": _GAMMA[name]} for name, values in data_sets.items()}
        for preset, data_sets in zsqbench.InceptionGenerator.presets.items()
    }

    gamma: float | None = Field(None, ge=0, description="power of a sample's difficulty that weighs its class loss")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench.synthesis import HAST, BNLoss

        with BNLoss(teacher.module, HAST) as bn_loss:
            losses = self.towards_classes(bn_loss, teacher, ctx, self.published("gamma", teacher))
            return self.synthesise(teacher, ctx, losses, ctx.resume() or {})


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `zeroq_il` and `hast`."""
    return [ZeroQIL, Hast]
