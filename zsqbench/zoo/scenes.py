"""The embedded detection data: scenes of coloured digits, drawn from the embedded digits, as files in COCO's format.

Evaluation scenes show only the digits' test part, all others the train part. Pixels are the same on each machine:
random numbers are uniform numbers of PCG64, and all computations are elementwise without a library of mathematical
functions.
"""

import functools
import itertools
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zsqbench.zoo.digits import CLASSES, load_digits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scene = tuple[NDArray[np.uint8], list[tuple[int, "Box"]]]
    """Pixels [SIDE, SIDE, 3], and each digit with its box."""

VERSION = 1
"""The version of the scenes. Raise it if scenes change."""

EVALUATED = CALIBRATION = 200
"""Number of scenes of each part."""

SIDE = 96
"""Height and width of a scene."""

DIGITS = (1, 6)
"""Fewest and most digits that are tried in a scene. A digit without a place is left out."""

HEIGHTS = (14, 40)
"""Height of a digit's grey image in pixels. Its visible part is often a little smaller."""

VISIBLE = 0.25
"""Pixels of a digit count from this opacity on. Fainter pixels at its rim are outside the box."""

OVERLAP = 0.1
"""The part of the smaller of two boxes that the other may cover."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels. Right and bottom are behind the last pixel."""
Part = Literal["train", "test"]
"""The labels of the digits."""
Name = Literal["val", "train"]
"""Folders of scenes: for evaluation, and for calibration."""

_NAMES: Mapping[Name, tuple[Part, int]] = {"val": ("test", EVALUATED), "train": ("train", CALIBRATION)}
_TRIES = 20
_GRID, _BORDER = 8, 1
_SLANT, _STRETCH = 0.25, (0.8, 1.15)
_BACKGROUND, _NOISE, _PALEST = 0.4, 0.25, 0.35


def write_scenes(folder: Path) -> None:
    """Write the scenes for evaluation (`val`) and for calibration (`train`), with their annotations.

    The folder is complete or absent. If another process was faster, its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name in _NAMES:
            _write_part(temporary, name)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fixed_scenes(name: Name) -> "Iterator[Scene]":
    """The scenes of a folder, the same each time."""
    import numpy as np

    part, count = _NAMES[name]
    for number in range(count):
        yield render_scene(np.random.Generator(np.random.PCG64([list(_NAMES).index(name), number])), part)


def render_scene(rng: "np.random.Generator", part: Part) -> "Scene":
    """A scene of digits of this part. Later digits cover earlier ones. Only uniform numbers are drawn."""
    import numpy as np

    images, labels = _digits(part)
    pixels = _background(rng)
    found: list[tuple[int, Box]] = []
    for _ in range(int(_uniform(rng, DIGITS[0], DIGITS[1] + 1))):
        chosen = int(_uniform(rng, 0, len(labels)))
        opacity = _distort(images[chosen], rng)[..., None]
        box = _place(rng, opacity.shape[0], opacity.shape[1], [box for _, box in found])
        if box is not None:
            left, top, right, bottom = box
            colour = _colour(rng, pixels[(top + bottom) // 2, (left + right) // 2])
            pixels[top:bottom, left:right] += opacity * (colour - pixels[top:bottom, left:right])
            found.append((int(labels[chosen]), box))
    pixels += _NOISE * rng.random() ** 2 * (rng.random(pixels.shape) - 0.5)
    return (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8), found


def _uniform(rng: "np.random.Generator", low: float, high: float) -> float:
    return low + (high - low) * rng.random()


@functools.lru_cache
def _digits(part: Part) -> "tuple[NDArray[np.float64], NDArray[np.int64]]":
    """Images [N, 8, 8] in 0..1 and labels [N]."""
    images, labels = load_digits(part)
    return images[:, 0].double().numpy(), labels.numpy()


def _background(rng: "np.random.Generator") -> "NDArray[np.float64]":
    """A smooth gradient of dim colours, [SIDE, SIDE, 3]."""
    import numpy as np

    cells = 2 + int(_uniform(rng, 0, 4))
    steps = np.arange(SIDE) * (cells - 1) / SIDE
    return _sample(rng.random((cells, cells, 3)) * _uniform(rng, 0, _BACKGROUND), steps[:, None], steps[None])


def _colour(rng: "np.random.Generator", behind: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """A colour [3] that differs visibly from the background."""
    while True:
        colour: NDArray[np.float64] = rng.random(3)
        if (colour - behind).max() > _PALEST:
            return colour


def _distort(image: "NDArray[np.float64]", rng: "np.random.Generator") -> "NDArray[np.float64]":
    """Enlarge a digit's image [8, 8], slant it both ways, and cut out the visible part: [height, width] in 0..1."""
    import numpy as np

    height = _uniform(rng, *HEIGHTS)
    width = height * _uniform(rng, *_STRETCH)
    down, across = _uniform(rng, -_SLANT, _SLANT), _uniform(rng, -_SLANT, _SLANT)
    size = _GRID + 2 * _BORDER
    rows, columns = (
        (np.arange(int(length * size / _GRID)) + 0.5) * _GRID / length - size / 2 for length in (height, width)
    )
    y, x = rows[:, None] + down * columns[None], columns[None] + across * rows[:, None]
    centre = (size - 1) / 2
    opacity = _sample(np.pad(image, _BORDER)[..., None], y + centre, x + centre)[..., 0]
    visible = opacity >= VISIBLE
    (top, bottom), (left, right) = _extent(visible, 1), _extent(visible, 0)
    return opacity[top:bottom, left:right]


def _extent(visible: "NDArray[np.bool_]", axis: int) -> tuple[int, int]:
    """The first row or column with a value, and the one behind the last."""
    import numpy as np

    present = np.flatnonzero(visible.any(axis))
    return int(present[0]), int(present[-1]) + 1


def _sample(values: "NDArray[np.float64]", y: "NDArray[np.float64]", x: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Bilinear interpolation of values [H, W, C] at [h, w] points. Outside, the values of the rim are used."""
    import numpy as np

    height, width, _ = values.shape
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    top, left = np.minimum(y.astype(np.int64), height - 2), np.minimum(x.astype(np.int64), width - 2)
    down, across = (y - top)[..., None], (x - left)[..., None]
    above = values[top, left] * (1 - across) + values[top, left + 1] * across
    below = values[top + 1, left] * (1 - across) + values[top + 1, left + 1] * across
    sampled: NDArray[np.float64] = above * (1 - down) + below * down
    return sampled


def _place(rng: "np.random.Generator", height: int, width: int, others: list[Box]) -> Box | None:
    """A place for a box of this size that covers little of the others. None: no place was found."""
    for _ in range(_TRIES):
        left, top = int(_uniform(rng, 0, SIDE - width + 1)), int(_uniform(rng, 0, SIDE - height + 1))
        box = (left, top, left + width, top + height)
        if all(_common(box, other) <= OVERLAP * min(_area(box), _area(other)) for other in others):
            return box
    return None


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _common(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _write_part(folder: Path, name: Name) -> None:
    from PIL import Image

    (folder / name).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    numbers = itertools.count(1)
    for number, (pixels, found) in enumerate(fixed_scenes(name), start=1):
        file = f"{number:04}.png"
        Image.fromarray(pixels).save(folder / name / file)
        images.append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
        annotations += [_annotation(next(numbers), number, digit, box) for digit, box in found]
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(number: int, image: int, digit: int, box: Box) -> dict[str, Any]:
    left, top, right, bottom = box
    return {
        "id": number,
        "image_id": image,
        "category_id": digit + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": _area(box),
        "iscrowd": 0,
    }
