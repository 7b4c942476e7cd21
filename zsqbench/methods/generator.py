"""The base of all generators."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from zsqbench.methods.base import Kind, Method

if TYPE_CHECKING:
    from zsqbench.methods.context import StepContext
    from zsqbench.methods.data import CalibrationSet, Pretrained


class Generator(Method, ABC):
    """Makes calibration images from a network alone (or, as a control, from real images)."""

    kind: ClassVar[Kind] = "generator"
    uses_real_data: ClassVar[bool] = False
    """True if it is handed real images (`ctx.real_images`); its rows are marked as not data-free."""
    gives_labels: ClassVar[bool] = False
    """True if its calibration sets carry labels."""

    images: int = Field(1024, gt=0, description="size of the calibration set")

    @abstractmethod
    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Return `images` images in the teacher's normalised space. The teacher must stay as it is."""
