"""Images of classes without batch normalisation: the inception loss of DeepInversion (Yin et al., CVPR 2020)."""

from typing import TYPE_CHECKING

from pydantic import Field
from zsqbench_plugins.shared.jittered import JitteredBatch, JitteredGenerator

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext


class ImagePrior(JitteredGenerator):
    """Smooth and small images that the network assigns to random classes, for any classifier.

    This is DeepInversion without its batch normalisation term: L = class_weight CE + variation_weight TV + norm_weight
    |x|. CE is the cross-entropy towards the wanted labels. TV is the sum of four norms of differences of neighbours
    over the whole batch. |x| is the mean norm of the images. Loop and values are those of DeepInversion's code
    (imagenet_inversion.py, setting 1: 2,000 iterations at full resolution): shifts by up to 30 of 224 pixels, flips,
    pixels clipped to valid values. The set contains the labels.

    No paper uses this as a method of quantization. It shows the worth of images that know labels and nothing else of
    the network. Its weights were chosen for use beside statistics of batch normalisation, which are most of
    DeepInversion's loss.

    Deviations:

    - The batch normalisation term and competition with a student are left out.
    - Classes are drawn; the code draws them only on request.
    - Shifts are in proportion to the images.
    - Further batches are made where `images` exceeds `batch_size`.
    - The method is seeded.
    """

    name = "image_prior"
    compiles = "pixels"

    lr: float = Field(0.2, gt=0, lt=1e30, description="highest learning rate of Adam")
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy towards the wanted labels")
    variation_weight: float = Field(1e-4, ge=0, description="weight of the total variation of a batch")
    norm_weight: float = Field(1e-5, ge=0, description="weight of the mean norm of images")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from zsqbench.synthesis import class_logits, frozen, inception_loss, total_variation

        self = self.resolved(teacher)

        def measure(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            loss = inception_loss(class_logits(teacher.module(images), labels), labels)
            return loss, total_variation(images), images.flatten(1).norm(dim=1).mean()

        compiled = ctx.compile(measure)

        def losses(batch: JitteredBatch) -> "tuple[Tensor, dict[str, Tensor]]":
            inception, variation, norm = compiled(batch.images, batch.labels)
            curves = {"inception_loss": inception, "variation": variation, "norm": norm}
            loss = self.class_weight * inception + self.variation_weight * variation + self.norm_weight * norm
            return loss, curves

        with frozen(teacher.module):
            return self.synthesize(teacher, ctx, losses, self.lr, state=ctx.resume() or {})


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `image_prior`."""
    return [ImagePrior]
