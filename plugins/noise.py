"""Gaussian noise: the negative control. Every generator must be better."""

from typing import TYPE_CHECKING

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from zsqbench import CalibrationSet, Pretrained, StepContext


class Noise(zsqbench.Generator):
    """Independent N(0, 1) pixels in normalised space, clamped to the valid range.

    The clamp is that of DGH's released code (`random_noise`). That function cannot run there, because it reads an
    argument that its parser does not define.
    """

    name = "noise"
    control = "negative"

    clamp: bool = Field(True, description="keep pixels within the values that an image can have")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Draw all the images at once."""
        import torch

        images = ctx.randn(self.images, *teacher.input_size)
        if self.clamp:
            low, high = (bound.to(images) for bound in teacher.valid_range())
            images = torch.clamp(images, low, high)
        return zsqbench.CalibrationSet(images.cpu())


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `noise`."""
    return [Noise]
