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
    BN statistics. The student minimises CE + alpha T^2 KL on the same images, with alpha 1 and T 20. The class follows
    the released code (xushoukai/GDFQ). Its KL is also averaged over classes. Against the cross-entropy, it is thus some
    20,000 times weaker than IntraQ's and HAST's. Inner normalisations have an eps of 0.8. Values are those of the
    code's settings files for CIFAR-100, also used for CIFAR-10, and for ImageNet. The paper was not looked up, so there
    is no preset. Images below 64 pixels are made by the code's network for CIFAR, which multiplies a class's embedding
    with noise. Larger ones are made by its network for ImageNet, where classes have their own gains and offsets in
    normalisations.

    Deviations:

    - The last epoch is the result. The release reports the best epoch by test accuracy.
    - Ranges of activations are an average without bias (`range_correction`).
    - Outputs of layers other than ReLU are rounded where the scheme says so.
    - The method is seeded.
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
