"""Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples (Choi et al., NeurIPS 2021)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods.cotraining import COTRAINED_IMAGENET_PROTOCOL, COTRAINED_PROTOCOL, MIXTURES

if TYPE_CHECKING:
    from zsqbench import Pretrained, StepContext
    from zsqbench.synthesis import BNLoss, ConditionalTraining


class Qimera(zsqbench.CoTrainedQuantizer):
    """GDFQ with images of several classes at once, in part of the updates: they lie where classes meet.

    The generator reads embeddings of classes plus noise, normalised. In `mixed` of the batches they are those of
    `mixed_classes` classes, drawn for each image, mixed with weights that are the softmax of normal numbers; labels are
    mixed alike. All else is GDFQ's. Follows the released code (iamkanghyunchoi/qimera) and its scripts: embeddings are
    random and learn for CIFAR-10 and ResNet-18, although the method is described with the weights of the network's last
    layer, which CIFAR-100 takes (`embeddings`); the mapping that is to disentangle them is off, and not there. Values
    go by data set; scripts for ResNet-50 and MobileNetV2 differ (`mixed` 0.7, the last layer's weights; 100 classes).
    The paper was not looked up, so there is no preset.

    Deviations: those of `gdfq`; for large images the generator has plain normalisations, since an image of several
    classes has none to choose gains by (how the release does it there could not be looked up).
    """

    name = "qimera"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {
            "cifar10": {**COTRAINED_PROTOCOL, **MIXTURES["cifar10"]},
            "cifar100": {**COTRAINED_PROTOCOL, **MIXTURES["cifar100"]},
            "imagenet": {**COTRAINED_IMAGENET_PROTOCOL, **MIXTURES["imagenet"]},
        }
    }

    mixed: float | None = Field(None, ge=0, le=1, description="part of the batches whose images are of several classes")
    mixed_classes: int | None = Field(None, gt=0, description="how many classes such an image is of")
    latent: int | None = Field(None, gt=0, description="length of an embedding; that of the network's, if it is that")
    embeddings: Literal["random", "network"] | None = Field(
        None, description="of classes: random ones that learn, or the weights of the network's last layer"
    )

    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """A generator that reads embeddings of classes."""
        mixture = {name: self.by_data_set(name, teacher) for name in MIXTURES["cifar10"]}
        return self.qimera(teacher, ctx, bn_loss, mixture)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `qimera`."""
    return [Qimera]
