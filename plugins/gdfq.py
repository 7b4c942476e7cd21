"""GDFQ: Generative Low-bitwidth Data Free Quantization (Xu et al., ECCV 2020)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench_plugins.shared.protocols import GDFQ_PROTOCOL

import zsqbench

if TYPE_CHECKING:
    from zsqbench import Pretrained, StepContext
    from zsqbench.synthesis import BNLoss, ConditionalTraining


class GDFQ(zsqbench.CoTrainedQuantizer):
    """A student that learns from the images of a generator of classes, which is trained at the same time.

    The generator minimises the float network's cross-entropy towards the classes plus 0.1 times the distance from its
    BN statistics, and the student CE + alpha T^2 KL on the same images, with alpha 1 and T 20. Follows the released
    code (xushoukai/GDFQ): its KL is averaged over classes as well, which makes it some 20,000 times weaker against the
    cross-entropy than IntraQ's and HAST's; inner normalisations have an eps of 0.8. Values are those of its files of
    settings for CIFAR-100, which are taken for CIFAR-10, too, and ImageNet; the paper was not looked up, so there is no
    preset. Images below 64 pixels are made by its network for CIFAR, where a class's embedding is multiplied with
    noise; larger ones by that for ImageNet, where classes have gains and offsets of their own in normalisations.

    Deviations: the last epoch is the result (the release reports the best by test accuracy); ranges of activations are
    an average without bias (`range_correction`); other layers than ReLU's are rounded where the scheme says so; seeded.
    """

    name = "gdfq"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {"": GDFQ_PROTOCOL}

    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """GDFQ's generator."""
        from zsqbench_plugins.shared.gdfq_generator import gdfq_training

        return gdfq_training(bn_loss, teacher, self.batch_size, ctx.rng, self.generator_lr, method=self.name)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `gdfq`."""
    return [GDFQ]
