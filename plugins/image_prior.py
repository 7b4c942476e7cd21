"""Images of classes without batch normalisation: the inception loss of DeepInversion (Yin et al., CVPR 2020)."""

from typing import TYPE_CHECKING

from pydantic import Field
from zsqbench_plugins.shared.jittered import JitteredBatch, JitteredGenerator

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext


class ImagePrior(JitteredGenerator):
    """Images that the network takes for random classes and that are smooth and small, for any classifier.

    DeepInversion without its term of batch normalisation: L = class_weight CE + variation_weight TV + norm_weight |x|,
    with the cross-entropy towards the wanted labels, four norms of differences of neighbours over the whole batch, and
    the mean norm of the images. Loop and values are those of its code (imagenet_inversion.py, setting 1: 2,000
    iterations at full resolution): shifts by up to 30 of 224 pixels, flips, pixels clipped to valid ones. Labels are in
    the set.

    No paper has it as a method of quantization: it says what images are worth that know labels and nothing else of the
    network. Its weights were chosen beside statistics of batch normalisation, which are most of DeepInversion's loss.

    Deviations: the term of batch normalisation, and competition with a student, are none of it; classes are drawn,
    which the code does if asked to; shifts in proportion to the images; further batches where `images` exceeds
    `batch_size`; seeded.
    """

    name = "image_prior"
    compiles = "pixels"

    lr: float = Field(0.2, gt=0, lt=1e30, description="highest learning rate of Adam")
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy towards the wanted labels")
    variation_weight: float = Field(1e-4, ge=0, description="weight of the total variation of a batch")
    norm_weight: float = Field(1e-5, ge=0, description="weight of the mean norm of images")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
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
