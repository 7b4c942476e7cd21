"""HAST: Hard Sample Matters a Lot in Zero-Shot Quantization (Li et al., CVPR 2023): its images, and its training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench_plugins.shared.hard_samples import HardSampleQuantizer
from zsqbench_plugins.shared.labelled import InceptionGenerator
from zsqbench_plugins.shared.protocols import HAST_PROMOTION, RELEASED_PROMOTION

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from zsqbench import CalibrationSet, Pretrained, StepContext

_GAMMA = {"cifar10": 2.0, "cifar100": 2.0, "imagenet": 0.5}


class ZeroQIL(InceptionGenerator):
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
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self = self.resolved(teacher)
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            return self.synthesize(teacher, ctx, self.towards_classes(bn_loss, ctx), ctx.resume() or {})


class HAST(InceptionGenerator):
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
        for preset, data_sets in InceptionGenerator.presets.items()
    }

    gamma: Auto[float] = auto(ge=0, description="power of a sample's difficulty that weighs its class loss")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self = self.resolved(teacher)
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            losses = self.towards_classes(bn_loss, ctx, self.gamma)
            return self.synthesize(teacher, ctx, losses, ctx.resume() or {})


class HASTTraining(HardSampleQuantizer):
    """A student that learns on images and on harder versions of them, with features aligned with the float network's.

    Each image is moved by `epsilon`, in normalised pixels, along the sign of the gradient of what the student is
    trained to minimise: its difficulty is promoted. The student then learns from both (`original_weight`,
    `promoted_weight`; Table 6): alpha T^2 KL, and `alignment_weight` (lambda) times the distance between attention
    vectors of what blocks give before their additions (Eq. 11 to 14). There is no cross-entropy.

    Follows the released code where the paper differs: the loss of KL and alignment is what is promoted, not the
    student's error on a label (its Table 5 says so, too); its gradient goes through the float network as well; the
    promoted image is compared with the float network's output there; lambda weighs the alignment only; attention
    vectors are normalised means, averaged over channels and summed over layers (`alignment: paper_attention` is Eq. 13
    and 14 to the letter, for which the published lambdas are far too large); T = 20. Layers are chosen by
    `zsqbench.quant.block_outputs`.

    The default preset is `paper`: lambda and epsilon for each data set, which the release's files of settings have,
    too, and its parser never reads. `released` is what the parser takes instead: 1000 and 0.01 for all. How it is
    trained besides, and all deviations, are those of `ste`.
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
