"""FlexRound: Learnable Rounding based on Element-wise Division for PTQ (Lee et al., ICML 2023)."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.methods.base import Compiled
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Grids


class FlexRound(zsqbench.UnitQuantizer):
    """Block reconstruction in which each weight is divided by its own learned number before it is rounded.

    W^ = s1 (clip(round(W / (s1 S2 s3 s4)) + z, 0, 2^b - 1) - z). S2 has a number for each weight, s3 one for each
    output channel, and s4, for convolutions only, one for each input channel. All begin with 1 and learn together with
    the step s1, by the squared error of a unit's output alone. There is no regulariser and no warm-up, because any
    values give a quantized weight. So a large weight may move by several codes. A weight has one grid, as the paper
    claims; `per_channel` gives each output channel its own. Units, inputs and activations are QDrop's: one stage, LSQ's
    step sizes, and elements that stay float at random (none with `drop: 0`).

    No code was released. Only summaries of the paper were read; they give neither rates nor schedules. The rates and
    their cosine to zero are ours. Divisors are learned directly, not by their logarithms, and stay above a thousandth.

    Deviations:

    - The scheme decides the bits of each tensor.
    - A unit that learning made worse on the calibration images keeps its earlier values.
    - Grids begin with BRECQ's search, and zero points stay as found.
    """

    name = "flexround"
    compiles: ClassVar[Compiled | None] = "units"
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")

    iterations: int = Field(20_000, ge=0, description="iterations for each unit")
    division_lr: float = Field(1e-3, gt=0, description="learning rate of S2, s3 and s4 (Adam, cosine to zero)")
    weight_scale_lr: float = Field(1e-4, gt=0, description="learning rate of weight scales (Adam, cosine to zero)")
    scale_lr: float = Field(4e-5, gt=0, description="learning rate of step sizes (Adam, cosine to zero)")
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an element stays float")
    per_channel: bool = Field(
        False, description="true: a grid for each output channel of a weight; false: one grid for the weight"
    )
    search_images: int = Field(256, gt=0, description="images on which activation ranges are chosen")

    def grids_at(self, scheme: Scheme) -> "Grids":
        """The grids that the scheme demands, for channels or whole weights."""
        return replace(super().grids_at(scheme), per_channel=self.per_channel)

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",  # noqa: ARG002
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Choose ranges, then learn unit by unit. Raises ZSQBenchError without calibration images."""
        from zsqbench.quant import (
            Division,
            Reconstruction,
            Stage,
            StepSizes,
            calibrate_weights,
            memory_errors,
            search_float_activations,
        )

        images = self.images_of(data)
        stage = Stage(
            self.iterations,
            self.batch_size,
            rounding=Division(self.division_lr, self.weight_scale_lr),
            step_sizes=StepSizes(self.scale_lr, lsq=True),
            quantize_activations=True,
            source="mixed",
            drop=self.drop,
            draws="replacement",
        )
        engine = Reconstruction(student, images, ctx, {"joint": stage}, memory=self.memory(ctx.device))
        calibrate_weights(student, "mse")
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            ctx.images_read(search_float_activations(student, images, self.search_images))
        engine.run("joint")


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `flexround`."""
    return [FlexRound]
