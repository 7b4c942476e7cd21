"""Images from a file, so that calibration sets made elsewhere can be compared."""

from typing import TYPE_CHECKING

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from zsqbench import CalibrationSet, Pretrained, StepContext


class File(zsqbench.Generator):
    """Reads a safetensors file with a tensor `images` [N, C, H, W], in the network's normalised space.

    It also reads an optional tensor `labels`: int64 [N], or float32 [N, classes] for soft labels.
    """

    name = "file"
    seeded = False

    path: zsqbench.InputFile = Field(description="safetensors file with images, and optionally labels")
    images: int | None = Field(  # type: ignore[assignment] # no other generator leaves their number to a file
        None, gt=0, description="number of images, from the first on; unset: all"
    )

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":  # noqa: ARG002
        """Read the images. Raises ZSQBenchError if they do not fit the network or are too few."""
        found = zsqbench.CalibrationSet.load(self.path)
        shape, dtype = list(found.images.shape), str(found.images.dtype).removeprefix("torch.")
        if shape[1:] != list(teacher.input_size) or not found.images.is_floating_point():
            expected = ", ".join(map(str, ["N", *teacher.input_size]))
            raise zsqbench.ZSQBenchError(
                f"images in {self.path} are {dtype} {shape}; the network takes float32 [{expected}]"
            )
        if not found.images.isfinite().all():
            raise zsqbench.ZSQBenchError(f"images in {self.path} hold numbers that are not finite")
        count = self.images or len(found)
        if not 0 < count <= len(found):
            raise zsqbench.ZSQBenchError(f"{self.path} holds {len(found)} images, and {count} were asked for")
        labels = None if found.labels is None else found.labels[:count]
        boxes = None if found.boxes is None else found.boxes[found.boxes[:, 0] < count]
        return zsqbench.CalibrationSet(found.images[:count].float(), labels, found.provenance, boxes)


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `file`."""
    return [File]
