"""Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples (Choi et al., NeurIPS 2021)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench_plugins.shared.mixtures import MixtureQuantizer
from zsqbench_plugins.shared.protocols import GDFQ_PROTOCOL, QIMERA_MIXTURES

import zsqbench

if TYPE_CHECKING:
    from zsqbench import Pretrained, StepContext
    from zsqbench.synthesis import BNLoss, ConditionalTraining


class Qimera(MixtureQuantizer):
    """GDFQ with images of several classes in part of the updates. These images lie near the borders between classes.

    The generator reads embeddings of classes plus noise, normalised. In `mixed` of the batches the embeddings are
    mixtures of `mixed_classes` classes, drawn for each image. The weights are the softmax of normal numbers, and labels
    are mixed alike. All else is GDFQ's. The class follows the released code (iamkanghyunchoi/qimera) and its scripts.
    Embeddings are random and learn for CIFAR-10 and ResNet-18. The method is described with the weights of the
    network's last layer, which CIFAR-100 uses (`embeddings`). The mapping that should disentangle embeddings is off in
    the release, and is not implemented. Values depend on the data set. The scripts for ResNet-50 and MobileNetV2 differ
    (`mixed` 0.7, the last layer's weights; 100 classes). The paper was not looked up, so there is no preset.

    Deviations: those of `gdfq`. For large images the generator has plain normalisations, because an image of several
    classes has no single class that could choose gains. The release's solution could not be looked up.
    """

    name = "qimera"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {name: {**GDFQ_PROTOCOL[name], **mixture} for name, mixture in QIMERA_MIXTURES.items()}
    }

    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """A generator that reads embeddings of classes."""
        return self.qimera(teacher, ctx, bn_loss)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `qimera`."""
    return [Qimera]
