"""QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization (Wei et al., ICLR 2022)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.scheme import Grid

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext


class QDrop(zsqbench.ReconstructionQuantizer):
    """Block reconstruction in one stage: rounding and step sizes together, with quantization dropped at random.

    Inputs of a unit are mixed, element by element, from two sources: the earlier quantized units and the float network.
    Behind each activation quantizer half of the elements stay float. So learning does not fit a single pattern of
    rounding errors. Ranges are searched first, of weights by themselves and of activations in a forward pass of the
    float network. The search covers 100 thresholds for one-sided tensors, and 100 ranges with all zero points for
    others. Losses and rounding are BRECQ's. Step sizes are LSQ's, with scaled gradients. Paper and released code do not
    differ as far as could be looked up, so there is no preset.

    Deviations:

    - The scheme decides the bits of each tensor. The code quantizes no logits, and has 8 bits for first and last
      weights and the classifier's input. This is close to `academic_intended`.
    - A unit that learning made worse on the calibration images keeps its earlier values.
    - Step sizes stay above a thousandth of their initial values.
    - Calibration images beyond a multiple of the batch are not dropped. The code drops them.
    - Real images are not augmented.

    MobileNetV2 was run with `rounding_weight: 0.1`. At 8 bits the search has 25,600 candidates for each channel of a
    weight, so it is slow.
    """

    name = "qdrop"
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")

    iterations: int = Field(20_000, ge=0, description="iterations for each unit")
    scale_lr: float = Field(4e-5, gt=0, description="learning rate of step sizes (Adam, cosine to zero)")
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an element stays float")
    search_images: int = Field(256, gt=0, description="images on which activation ranges are chosen")

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",  # noqa: ARG002
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Choose ranges, then learn unit by unit. Raises ZSQBenchError without calibration images."""
        from zsqbench.quant import (
            Reconstruction,
            Stage,
            StepSizes,
            memory_errors,
            range_search,
            search_float_activations,
            search_weights,
        )

        images = self.images_of(data)
        stage = Stage(
            self.iterations,
            self.batch_size,
            rounding=self.rounding(),
            step_sizes=StepSizes(self.scale_lr, lsq=True),
            quantize_activations=True,
            source="mixed",
            drop=self.drop,
            draws="replacement",
        )
        engine = Reconstruction(student, images, ctx, {"joint": stage}, memory=self.memory(ctx.device))
        search_weights(student, range_search)
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            ctx.images_read(search_float_activations(student, images, self.search_images))
        engine.run("joint")


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `qdrop`."""
    return [QDrop]
