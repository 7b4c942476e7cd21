"""Round to nearest: the lower reference that every learned quantizer must exceed."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from torch import nn

    from zsqbench import CalibrationSet, Pretrained, StepContext


class RTN(zsqbench.GridQuantizer):
    """Rounds weights per output channel and activations per tensor to the nearest point of a grid; nothing is learned.

    Ranges are searched by default. Of the ranges (1 - 0.01 i) (min, max), i < 80, the search takes the one with the
    least mean |x - Q(x)|^2.4. BRECQ initialises in this way, in its own code and in DGH's. A power-of-two grid has ten
    candidate thresholds. `minmax` is ZeroQ's protocol: ranges from end to end. Batch normalisation is folded first
    where the scheme says so. Activations are calibrated with rounded weights, and each tensor with the earlier tensors
    rounded. Searches use one pass of the first `search_images` images (BRECQ takes 64, DGH 512). Min-max is a running
    range over all the images. PSAQ-ViT's quantizer is `weight_range: absmax`, `activation_range: minmax` and
    `float_ranges: true`, in the scheme `psaq`.

    Deviations:

    - PSAQ-ViT's code adds the zero point before it rounds. This decides the code of a value halfway between two codes.
    - Every range includes zero. So zero, and with it padding, is exact, and the zero point is a code. BRECQ's search
      excludes zero where all values have one sign, and so do ZeroQ's weights. PSAQ-ViT's code clips tensors that lack
      zero.
    - ZeroQ keeps BN unfolded.
    """

    name = "rtn"
    memory_options = ("search_images", "batch_size")
    seeded = False
    weight_range: Literal["minmax", "mse", "percentile", "absmax"] = Field(
        "mse",
        description="method that chooses weight ranges; absmax: around zero, half a step short of the largest size",
    )
    activation_range: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="method that chooses activation ranges"
    )
    float_ranges: bool = Field(
        False,
        description="find activation ranges in the float network; false: in the network whose earlier "
        "tensors are rounded",
    )
    percent: float = Field(99.9, gt=50, le=100, description="percentile at which ranges end; for percentile only")
    search_images: int = Field(
        64, gt=0, description="images on which activation ranges are chosen; without effect with minmax"
    )
    batch_size: int = Field(64, gt=0, description="images of a forward pass; for minmax only")

    def quantize(
        self,
        student: "nn.Module",
        teacher: "Pretrained",  # noqa: ARG002
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Set the ranges of all quantizers. Raises ZSQBenchError without calibration images."""
        from zsqbench.quant import calibrate_activations_by, calibrate_weights

        images = self.images_of(data)
        calibrate_weights(student, self.weight_range, self.percent)
        read = calibrate_activations_by(
            self.activation_range,
            student,
            images,
            self.search_images,
            percent=self.percent,
            batch_size=self.batch_size,
            in_float=self.float_ranges,
        )
        ctx.images_read(read)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `rtn`."""
    return [RTN]
