"""The options of Qimera's generator, whose images may have several classes at once."""

from abc import ABC
from typing import TYPE_CHECKING, Literal

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from zsqbench import Pretrained, StepContext
    from zsqbench.synthesis import BNLoss, ConditionalTraining

MIXTURE_OPTIONS = ("mixed", "mixed_classes", "latent", "embeddings")


class MixtureQuantizer(zsqbench.CoTrainedQuantizer, ABC):
    """A quantizer that trains Qimera's generator beside the student, or can do so."""

    mixed: Auto[float] = auto(
        ge=0, le=1, description="part of the batches whose images are of several classes; for Qimera's generator only"
    )
    mixed_classes: Auto[int] = auto(
        gt=0, description="number of classes of an image of several classes; for Qimera's generator only"
    )
    latent: Auto[int] = auto(gt=0, description="length of an embedding that learns; for Qimera's generator only")
    embeddings: Auto[Literal["random", "network"]] = auto(
        description="embeddings of classes: random ones that learn, or the weights of the network's last "
        "layer; for Qimera's generator only"
    )

    def qimera(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """Qimera's generator and its training. Raises ZSQBenchError for a network that is not a classifier."""
        from zsqbench_plugins.shared.gdfq_generator import Mixture, qimera_training

        mixture = Mixture(self.mixed, self.mixed_classes, self.latent, self.embeddings)
        return qimera_training(bn_loss, teacher, self.batch_size, ctx.rng, self.generator_lr, mixture, method=self.name)
