"""Read image files with 8 bits for each colour. 16 bits are scaled. Pixels without a defined white are refused."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

NOT_TURNED = "{} of {} images have an EXIF orientation and are not turned, as torchvision and timm turn none"
"""The note on images for which `is_turned` is true, with their number and the number of all images."""

WHITE, WHITE_OF_12_BITS, WHITE_OF_8_BITS = 65535, 4095, 255

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF. For grey images of more than 8 bits, Pillow leaves them to its caller."""

WHITE_IS_ZERO, SIGNED = 0, (2,)


def open_image(path: Path) -> "Image":
    """Decode a file into 8 bits for each colour. If this fails, raises ZSQBenchError with the file's name.

    As in torchvision's ImageFolder and in timm, EXIF turns no image (but Pillow itself turns TIFF files), and
    transparent colours are kept.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # the errors of Pillow's formats
        detail = " ".join(str(error).split())
        raise ZSQBenchError(f"image {path} cannot be read: {detail}; copy it again or remove it") from error
    return eight_bit(image, f"image {path}")


def eight_bit(image: "Image", name: str = "the image") -> "Image":
    """The image with 8 bits for each colour. Grey of 16 bits is scaled so that 65535 becomes 255. Others stay.

    Pillow itself reads colours of 16 bits as their upper 8. Raises ZSQBenchError for pixels whose white is not known.
    """
    import numpy as np
    from PIL.Image import fromarray

    if image.mode == "F":
        raise ZSQBenchError(f"{name} has floating-point pixels, and the file does not say which is white; {_REMEDY}")
    if not image.mode.startswith("I"):
        return image
    values, tags = np.asarray(image).astype(np.int64), dict(getattr(image, "tag_v2", {}))
    _check(values, tags, name)
    white = WHITE_OF_12_BITS if tags.get(BITS) == (12,) else WHITE
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    made = fromarray(((values * WHITE_OF_8_BITS + white // 2) // white).astype(np.uint8))
    made.info.update({key: value for key, value in image.info.items() if key == "exif"})
    return made


def is_turned(image: "Image") -> bool:
    """True if EXIF says that viewers must turn or mirror the image."""
    from PIL.ExifTags import Base

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(Base.Orientation) in range(2, 9)
        except Exception:  # noqa: BLE001 - cameras write broken EXIF, on which Pillow may raise anything; viewers ignore it
            return False


_REMEDY = "save it with 8 bits, or with 16 unsigned bits of which 65535 is white"


def _check(values: "np.ndarray[Any, Any]", tags: dict[int, Any], name: str) -> None:
    """Raise ZSQBenchError for integers that are not 16 bits, or that may also be 8 bits."""
    low, high = int(values.min()), int(values.max())
    if tags.get(BITS) == (16,) and tags.get(SAMPLE_FORMAT) == SIGNED:
        raise ZSQBenchError(f"{name} has signed 16-bit pixels, and the file does not say which is white; {_REMEDY}")
    if low < 0 or high > WHITE:
        raise ZSQBenchError(f"{name} has pixels from {low} to {high}; expected 0 to {WHITE}: {_REMEDY}")
    if tags.get(BITS) == (32,) and 0 < high <= WHITE_OF_8_BITS:
        raise ZSQBenchError(f"{name} has 32-bit pixels of {high} at most, so white may be 255 or 65535; {_REMEDY}")
