"""The base of all generators."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """True if it gets real images (`ctx.real_images`). Its rows are marked as not data-free."""
    gives_labels: ClassVar[bool] = False
    """True if its calibration sets have labels."""
    needs_attention: ClassVar[bool] = False
    """True if it needs attention that capture takes apart, and whole patches. Other networks have no cells."""

    images: int = Field(1024, gt=0, description="size of the calibration set")

    @abstractmethod
    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Return `images` images in the teacher's normalised space. The teacher must not change."""


def lack_of_attention(blocks: int, patch: Sequence[int], input_size: Sequence[int], network: str) -> str | None:
    """The reason why a generator with `needs_attention` cannot run, as a clause after its name, or None.

    `blocks` counts the blocks whose attention capture takes apart. `patch` is height and width of patches, if there are
    any. `input_size` is channels, height and width.
    """
    if not blocks:
        return f"needs attention that capture takes apart, softmax and product with the values, and {network} has none"
    sides = input_size[1:]
    if any(side % part for side, part in zip(sides, patch, strict=False)):
        cut, whole = (" x ".join(map(str, each)) for each in (patch, sides))
        return f"needs patches that fill the image, and {network} cuts {whole} pixels into patches of {cut}"
    return None
