"""Read and check COCO's instances JSON. The error for a wrong field is one line with the field and its entry."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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


def _fits_int64(number: int) -> int:
    if abs(number) > LARGEST:
        raise ValueError(f"a number that int64 can hold, {LARGEST} at most")
    return number


_Whole = Annotated[int, AfterValidator(_fits_int64), Field(description="a whole number")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Entry(BaseModel):
    """An entry of a list. The description of a field says what is expected."""

    model_config = ConfigDict(frozen=True)

    id: _Whole


class _Image(_Entry):
    file_name: str = Field(description="a text")
    width: _Whole
    height: _Whole


class Category(_Entry):
    """A category. Without a name it has its number as its name."""

    name: Annotated[str, BeforeValidator(str)] = Field(default_factory=lambda before: str(before.get("id")))


class Annotation(_Entry):
    """A box of an image. Without an area it has that of its box."""

    image_id: _Whole
    category_id: _Whole
    bbox: list[_Finite] = Field(min_length=4, max_length=4, description="[left, top, width, height] in pixels")
    area: _Finite = Field(
        default_factory=lambda before: math.prod(before.get("bbox", [])[2:]), ge=0, description="a number, 0 or more"
    )
    iscrowd: int = Field(0, ge=0, le=1, description="0 or 1")


_Kind = TypeVar("_Kind", bound=_Entry)


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
    annotations: tuple[Annotation, ...]
    categories: tuple[Category, ...]
    notes: tuple[str, ...] = ()
    """Notes on unusual values that are kept."""

    @classmethod
    def read(cls, path: Path) -> "Instances":
        """Read a file. If it breaks COCO's format, raises ZSQBenchError with one line that names the entry."""
        content = _load(path)
        images = sorted((_image(path, each) for each in content["images"]), key=_number)
        if not images:
            raise ZSQBenchError(f"{path} lists no images; expected at least one under 'images'")
        categories = sorted((_read(Category, path, each) for each in content["categories"]), key=_number)
        if not categories:
            raise ZSQBenchError(f"{path} lists no categories; expected at least one under 'categories'")
        by_id = {image.id: image for image in images}
        known = {category.id for category in categories}
        _only_once(path, "image", images)
        _only_once(path, "category", categories)
        annotations = [_annotation(path, each, by_id, known) for each in content["annotations"]]
        _only_once(path, "annotation", annotations)
        annotations.sort(key=_number)
        notes = _outside(path, annotations, by_id)
        return cls(path, tuple(images), tuple(annotations), tuple(categories), notes)

    def of(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        """The data of some of the images, in COCO's format."""
        chosen = {image.id for image in images}
        kept = (each for each in self.annotations if each.image_id in chosen)
        return {
            "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
            # new numbers, because COCOeval takes number 0 as no number
            "annotations": [each.model_dump() | {"id": number} for number, each in enumerate(kept, start=1)],
            "categories": [each.model_dump() for each in self.categories],
        }


def _number(entry: _Entry | ImageFile) -> int:
    return entry.id


def _read(kind: type[_Kind], path: Path, content: object) -> _Kind:
    """Raises ZSQBenchError, which names the entry, the first field that is wrong, and what is expected."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        name = kind.__name__.removeprefix("_").lower()
        if not isinstance(content, dict):
            raise ZSQBenchError(f"{path}: {name} {_short(str(content))} is not an object with fields") from error
        first, number = error.errors()[0], content.get("id")
        entry = f"{name} {number}" if isinstance(number, int) else f"{name} {_short(str(content))}"
        field = str(first["loc"][0])
        if first["type"] == "missing":
            raise ZSQBenchError(f"{path}: {entry} has no {field!r}") from error
        expected = first["ctx"]["error"] if first["type"] == "value_error" else kind.model_fields[field].description
        given = _short(json.dumps(content[field]))
        raise ZSQBenchError(f"{path}: {field!r} of {entry} is {given}; expected {expected}") from error


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


def _image(path: Path, content: object) -> ImageFile:
    entry = _read(_Image, path, content)
    parts = Path(entry.file_name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ZSQBenchError(
            f"{path}: file_name {entry.file_name!r} of image {entry.id} leaves the folder of the images"
        )
    return ImageFile(entry.id, entry.file_name, entry.width, entry.height)


def _annotation(
    path: Path, content: object, images: Mapping[int, ImageFile], categories: Collection[int]
) -> Annotation:
    entry = _read(Annotation, path, content)
    for name, number, known in (("image", entry.image_id, images), ("category", entry.category_id, categories)):
        if number not in known:
            raise ZSQBenchError(f"{path}: annotation {entry.id} is of {name} {number}, which is not in the list")
    size = images[entry.image_id]
    limit = max(FEW_PIXELS, FEW_PARTS * max(size.width, size.height))
    if min(entry.bbox[2:]) < 0 or _overhang(entry.bbox, size) > limit:
        raise ZSQBenchError(
            f"{path}: the box {entry.bbox} of annotation {entry.id} is outside of image {entry.image_id}, which is "
            f"{size.width} x {size.height} pixels; expected [left, top, width, height] in pixels, {limit:g} outside at "
            "most"
        )
    return entry


def _overhang(box: Sequence[float], size: ImageFile) -> float:
    """How many pixels a box ends outside its image."""
    left, top, width, height = box
    return max(-left, -top, left + width - size.width, top + height - size.height, 0.0)


def _outside(path: Path, annotations: Sequence[Annotation], images: Mapping[int, ImageFile]) -> tuple[str, ...]:
    """A note on boxes that end further outside their images than by rounding."""
    by = {each.id: _overhang(each.bbox, images[each.image_id]) for each in annotations}
    beyond = {number: pixels for number, pixels in by.items() if pixels > SLACK}
    if not beyond:
        return ()
    number = max(beyond, key=beyond.__getitem__)
    note = (
        f"{len(beyond)} of {len(annotations)} boxes of {path.name} end outside of their images, that of annotation "
        f"{number} by {beyond[number]:g} pixels; they are taken as they are"
    )
    return (note,)


def _only_once(path: Path, what: str, entries: Sequence[_Entry | ImageFile]) -> None:
    seen: set[int] = set()
    for number in map(_number, entries):
        if number in seen:
            raise ZSQBenchError(f"{path}: {what} {number} is there twice")
        seen.add(number)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line has room for so much
