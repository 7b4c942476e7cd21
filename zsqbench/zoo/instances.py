"""Read and check COCO's instances JSON. The error for a wrong field is one line with the field and its entry."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsqbench.errors import ZSQBenchError

SLACK = 1.0
"""A box may end so many pixels outside its image without a note, because annotations are rounded."""

FEW_PIXELS, FEW_PARTS = 10.0, 0.05
"""The most that a box may end outside, with a note: pixels, or a part of the longer side, whichever is more.

Annotators draw beyond the border. A box further outside is probably [left, top, right, bottom], or of an image that
was resized.
"""

LARGEST = 2**63 - 1
"""The largest number. Detections and pycocotools keep numbers as int64."""

_LISTS = ("images", "annotations", "categories")
_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class ImageFile:
    """An image of the data, in the order of its number."""

    id: int
    name: str
    """Its path below the folder of the images."""
    width: int
    height: int


@dataclass(frozen=True)
class Instances:
    """The content of an instances JSON, each list by ascending number. Images without annotations are included."""

    path: Path
    images: tuple[ImageFile, ...]
    annotations: tuple[Mapping[str, Any], ...]
    categories: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    """Notes on unusual values that are kept."""

    @classmethod
    def read(cls, path: Path) -> "Instances":
        """Read a file. If it breaks COCO's format, raises ZSQBenchError with one line that names the entry."""
        content = _load(path)
        images = sorted((_image(_Entry(path, "image", each)) for each in content["images"]), key=lambda each: each.id)
        if not images:
            raise ZSQBenchError(f"{path} lists no images; expected at least one under 'images'")
        categories = sorted(
            (_category(_Entry(path, "category", each)) for each in content["categories"]), key=lambda each: each["id"]
        )
        if not categories:
            raise ZSQBenchError(f"{path} lists no categories; expected at least one under 'categories'")
        by_id = {image.id: image for image in images}
        known = {category["id"] for category in categories}
        _only_once(path, "image", [image.id for image in images])
        _only_once(path, "category", [category["id"] for category in categories])
        annotations = [_annotation(_Entry(path, "annotation", each), by_id, known) for each in content["annotations"]]
        _only_once(path, "annotation", [annotation["id"] for annotation in annotations])
        annotations.sort(key=lambda each: each["id"])
        notes = _outside(path, annotations, by_id)
        return cls(path, tuple(images), tuple(annotations), tuple(categories), notes)

    def of(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        """The data of some of the images, in COCO's format."""
        chosen = {image.id for image in images}
        kept = (each for each in self.annotations if each["image_id"] in chosen)
        return {
            "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
            # new numbers, because COCOeval takes number 0 as no number; copies, because it writes into them
            "annotations": [{**each, "id": number} for number, each in enumerate(kept, start=1)],
            "categories": list(self.categories),
        }


@dataclass(frozen=True)
class _Entry:
    """An entry of a list. Each of its fields has its own error line."""

    path: Path
    kind: str
    content: Any

    def whole(self, name: str, default: Any = _NOT_GIVEN) -> int:
        """A whole number that int64 can hold."""
        value = self._value(name, default)
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.wrong(name, "a whole number") from error
        if isinstance(value, float) and value != number:
            raise self.wrong(name, "a whole number")
        if abs(number) > LARGEST:
            raise self.wrong(name, f"a number that int64 can hold, {LARGEST} at most")
        return number

    def real(self, name: str, default: Any = _NOT_GIVEN) -> float:
        """A finite number, 0 or more."""
        (number,) = self._finite(name, [self._value(name, default)], "a number, 0 or more")
        if number < 0:
            raise self.wrong(name, "a number, 0 or more")
        return number

    def box(self, name: str) -> list[float]:
        """Left, top, width and height."""
        expected = "[left, top, width, height] in pixels"
        value = self._value(name, _NOT_GIVEN)
        if not isinstance(value, list) or len(value) != 4:  # noqa: PLR2004 - a box
            raise self.wrong(name, expected)
        return self._finite(name, value, expected)

    def text(self, name: str) -> str:
        """A text."""
        value = self._value(name, _NOT_GIVEN)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def wrong(self, name: str, expected: str) -> ZSQBenchError:
        """The error that a field is not what was expected."""
        return self.error(f"{name!r} of {self} is {_short(json.dumps(self.content[name]))}; expected {expected}")

    def error(self, text: str) -> ZSQBenchError:
        """The error with this text on the file."""
        return ZSQBenchError(f"{self.path}: {text}")

    def __str__(self) -> str:
        number = self.content.get("id")
        return f"{self.kind} {number}" if isinstance(number, int) else f"{self.kind} {_short(str(self.content))}"

    def _value(self, name: str, default: Any) -> Any:
        if not isinstance(self.content, dict):
            raise self.error(f"{self.kind} {_short(str(self.content))} is not an object with fields")
        if name not in self.content and default is _NOT_GIVEN:
            raise self.error(f"{self} has no {name!r}")
        return self.content.get(name, default)

    def _finite(self, name: str, values: Sequence[Any], expected: str) -> list[float]:
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise self.wrong(name, expected) from error
        if not all(map(math.isfinite, numbers)):
            raise self.wrong(name, expected)
        return numbers


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ZSQBenchError(f"annotations {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        size = path.stat().st_size
        raise ZSQBenchError(f"annotations {path} ({size} bytes) are not JSON: {error}; copy the file again") from error
    for name in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ZSQBenchError(
                f"annotations {path} have no list {name!r}; expected COCO's instances format, with {', '.join(_LISTS)}"
            )
    return content


def _image(entry: _Entry) -> ImageFile:
    image = ImageFile(entry.whole("id"), entry.text("file_name"), entry.whole("width"), entry.whole("height"))
    if Path(image.name).is_absolute() or ".." in Path(image.name).parts:
        raise entry.error(f"file_name {image.name!r} of image {image.id} leaves the folder of the images")
    return image


def _category(entry: _Entry) -> dict[str, Any]:
    number = entry.whole("id")
    return {"id": number, "name": str(entry.content.get("name", number))}


def _annotation(entry: _Entry, images: Mapping[int, ImageFile], categories: set[int]) -> dict[str, Any]:
    number, image, category = (entry.whole(name) for name in ("id", "image_id", "category_id"))
    box = entry.box("bbox")
    area, crowd = entry.real("area", box[2] * box[3]), entry.whole("iscrowd", 0)
    if crowd not in (0, 1):
        raise entry.wrong("iscrowd", "0 or 1")
    if image not in images:
        raise entry.error(f"annotation {number} is of image {image}, which is not in the list")
    if category not in categories:
        raise entry.error(f"annotation {number} is of category {category}, which is not in the list")
    size = images[image]
    limit = max(FEW_PIXELS, FEW_PARTS * max(size.width, size.height))
    if min(box[2:]) < 0 or _overhang(box, size) > limit:
        raise entry.error(
            f"the box {box} of annotation {number} is outside of image {image}, which is {size.width} x "
            f"{size.height} pixels; expected [left, top, width, height] in pixels, {limit:g} outside at most"
        )
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
    }


def _overhang(box: Sequence[float], size: ImageFile) -> float:
    """How many pixels a box ends outside its image."""
    left, top, width, height = box
    return max(-left, -top, left + width - size.width, top + height - size.height, 0.0)


def _outside(path: Path, annotations: Sequence[Mapping[str, Any]], images: Mapping[int, ImageFile]) -> tuple[str, ...]:
    """A note on boxes that end further outside their images than by rounding."""
    by = {each["id"]: _overhang(each["bbox"], images[each["image_id"]]) for each in annotations}
    beyond = {number: pixels for number, pixels in by.items() if pixels > SLACK}
    if not beyond:
        return ()
    number = max(beyond, key=beyond.__getitem__)
    note = (
        f"{len(beyond)} of {len(annotations)} boxes of {path.name} end outside of their images, that of annotation "
        f"{number} by {beyond[number]:g} pixels; they are taken as they are"
    )
    return (note,)


def _only_once(path: Path, what: str, numbers: Sequence[int]) -> None:
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise ZSQBenchError(f"{path}: {what} {number} is there twice")
        seen.add(number)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line has room for so much
