"""Bring an image of any size to the network's size: resize and crop as in torchvision and timm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    from PIL.Image import Image

Side = int | tuple[int, int]
"""One length, or height and width if they differ."""

CropMode = Literal["center", "squash", "border"]
"""timm's names (`transforms_imagenet_eval`) for the ways to give an image the proportions of the network's input.

`center` keeps the proportions of the image and cuts off the rest. `squash` changes them to those of `resize`. `border`
fits the whole image into `resize` and adds borders.
"""


def side(height: int, width: int) -> Side:
    """Height and width as one length if they are equal."""
    return height if height == width else (height, width)


@dataclass(frozen=True)
class Geometry:
    """The geometry of preprocessing: an image is resized to `resize`, and the centre of size `crop` is cut out."""

    input_size: tuple[int, int, int]
    """Channels (1 is grey, 3 is colour), height and width of the result."""
    resize: Side | None
    """For `center`, one length is that of the shorter side. Height and width are both covered."""
    crop: Side | None
    interpolation: str
    channels: Literal["rgb", "bgr"]
    crop_mode: CropMode = "center"
    fill: tuple[int, ...] = ()
    """The colour of borders, 0 to 255, one value for each channel of the image (red first). Empty: black."""

    def apply(self, image: "Image") -> "Image":
        """The image in the network's size. If the size is wrong, raises ZSQBenchError, which says what to set."""
        made = image if self.resize is None else self._resized(image, self.resize)
        made = made if self.crop is None else self._cropped(made, self.crop)
        _, height, width = self.input_size
        if made.size != (width, height):
            raise ZSQBenchError(
                f"an image of {image.size[0]} x {image.size[1]} pixels became {made.size[0]} x {made.size[1]} "
                f"(resize: {_said(self.resize)}, crop: {_said(self.crop)}), but the network takes {width} x {height}; "
                "set the model's resize and crop"
            )
        return made

    def _resized(self, image: "Image", resize: Side) -> "Image":
        from PIL.Image import Resampling

        size = self._size_of(image.size, resize)
        return image if size == image.size else image.resize(size, Resampling[self.interpolation.upper()])

    def _size_of(self, size: tuple[int, int], resize: Side) -> tuple[int, int]:
        """Width and height after resizing."""
        if self.crop_mode == "center" and isinstance(resize, int):
            return _shorter_side(size, resize)
        height, width = _pair(resize)
        if self.crop_mode == "squash":
            return width, height
        ratios = size[0] / width, size[1] / height
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1)

    def _cropped(self, image: "Image", crop: Side) -> "Image":
        """The centre, cut as in torchvision."""
        height, width = _pair(crop)
        if image.width < width or image.height < height:
            image = _pad(image, width, height, self.fill)
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
        return image.crop((left, top, left + width, top + height))


def mean_colour(
    mean: Sequence[float], value_range: tuple[float, float], channels: Literal["rgb", "bgr"]
) -> tuple[int, ...]:
    """The colour of timm's borders, 0 to 255 and red first. Normalisation makes it about 0."""
    low, high = value_range
    colour = [min(max(round(255 * ((value - low) / (high - low))), 0), 255) for value in mean]
    return tuple(reversed(colour) if channels == "bgr" else colour)


def _pair(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _said(side: Side | None) -> str:
    return "none" if side is None else str(side) if isinstance(side, int) else f"{side[0]} high, {side[1]} wide"


def _shorter_side(size: tuple[int, int], length: int) -> tuple[int, int]:
    """Resize to a length of the shorter side, as in torchvision. The longer side is rounded down."""
    shorter, longer = sorted(size)
    other = int(length * longer / shorter)
    return (length, other) if size[0] == shorter else (other, length)


def _pad(image: "Image", width: int, height: int, fill: tuple[int, ...]) -> "Image":
    """Add borders up to a size. An odd pixel goes to the right and the bottom."""
    from PIL import ImageOps

    missing = max(width - image.width, 0), max(height - image.height, 0)
    left, top = missing[0] // 2, missing[1] // 2
    colour = fill if len(fill) > 1 else (fill or (0,))[0]
    return ImageOps.expand(image, (left, top, missing[0] - left, missing[1] - top), fill=colour)
