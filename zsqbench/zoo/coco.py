"""COCO-format detection data: the instances JSON, checked when it is read, and COCO's figures by pycocotools."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FIGURES = (
    "mAP",
    "mAP50",
    "mAP75",
    "mAP_small",
    "mAP_medium",
    "mAP_large",
    "mAR1",
    "mAR10",
    "mAR100",
    "mAR_small",
    "mAR_medium",
    "mAR_large",
)
"""COCO's twelve, in its order: average precision over IoU thresholds 0.5 to 0.95, and recall at most detections."""

SLACK = 1.0
"""Pixels by which a box may end outside of its image: annotations are rounded."""

_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class ImageFile:
    """An image of the data, in the order of its number."""

    id: int
    name: str
    """Below the folder of the images."""
    width: int
    height: int


@dataclass(frozen=True)
class Instances:
    """What an instances JSON says, each list by ascending number. Images without annotations are there, too."""

    path: Path
    images: tuple[ImageFile, ...]
    annotations: tuple[Mapping[str, Any], ...]
    categories: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> "Instances":
        """Raises ZSQBenchError, in one line that names the entry, for a file that COCO's format does not allow."""
        content = _load(path)
        images = sorted((_image(path, entry) for entry in content["images"]), key=lambda image: image.id)
        if not images:
            raise ZSQBenchError(f"{path} lists no images; expected at least one under 'images'")
        categories = sorted((_category(path, entry) for entry in content["categories"]), key=lambda each: each["id"])
        if not categories:
            raise ZSQBenchError(f"{path} lists no categories; expected at least one under 'categories'")
        by_id = {image.id: image for image in images}
        known = {category["id"] for category in categories}
        _only_once(path, "image", [image.id for image in images])
        _only_once(path, "category", [category["id"] for category in categories])
        annotations = [_annotation(path, entry, by_id, known) for entry in content["annotations"]]
        _only_once(path, "annotation", [annotation["id"] for annotation in annotations])
        return cls(path, tuple(images), tuple(sorted(annotations, key=lambda each: each["id"])), tuple(categories))

    def of(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        """The same as COCO's format has it, of some of the images."""
        chosen = {image.id for image in images}
        kept = (each for each in self.annotations if each["image_id"] in chosen)
        return {
            "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
            # numbered anew, for COCOeval takes number 0 for none, and copied, for it writes into them
            "annotations": [{**each, "id": number} for number, each in enumerate(kept, start=1)],
            "categories": list(self.categories),
        }


@dataclass(frozen=True)
class Detections:
    """Boxes that a detector found, one row each, of all images."""

    image_ids: "np.ndarray[Any, Any]"
    """int64 [K]."""
    categories: "np.ndarray[Any, Any]"
    """int64 [K], by the numbers of the data."""
    boxes: "np.ndarray[Any, Any]"
    """float32 [K, 4]: left, top, width, height, in pixels of the image."""
    scores: "np.ndarray[Any, Any]"
    """float32 [K]."""

    @classmethod
    def of(cls, rows: "Sequence[tuple[int, Mapping[str, Tensor]]]") -> "Detections":
        """Of images by number, with `boxes` (left, top, right, bottom), `scores` and `labels` each.

        Boxes and scores that are not finite are none.
        """
        import numpy as np
        import torch

        boxes = torch.cat([torch.zeros(0, 4), *(found["boxes"].float() for _, found in rows)])
        scores = torch.cat([torch.zeros(0), *(found["scores"].float() for _, found in rows)])
        labels = torch.cat([torch.zeros(0).long(), *(found["labels"].long() for _, found in rows)])
        counts = [len(found["scores"]) for _, found in rows]
        images = np.repeat(np.array([number for number, _ in rows], dtype=np.int64), counts)
        finite = (boxes.isfinite().all(1) & scores.isfinite()).numpy()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        return cls(images[finite], labels.numpy()[finite], boxes.numpy()[finite], scores.numpy()[finite])


def coco_figures(truth: Mapping[str, Any], found: Detections) -> dict[str, float]:
    """The twelve figures of COCOeval for boxes, in percent; `truth` is COCO's format as a dictionary.

    A figure of sizes or categories that the data has no box of is left out (COCOeval says -1).
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does and how long it takes
        data = COCO()
        data.dataset = dict(truth)
        data.createIndex()
        results = COCO()
        results.dataset = {name: truth[name] for name in ("images", "categories")} | {"annotations": [*_as_coco(found)]}
        results.createIndex()
        evaluation = COCOeval(data, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = (float(value) for value in evaluation.stats)
    return {name: 100 * value for name, value in zip(FIGURES, values, strict=True) if value >= 0}


def _as_coco(found: Detections) -> Iterator[dict[str, Any]]:
    rows = zip(
        found.image_ids.tolist(), found.categories.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
    )
    for number, (image, category, box, score) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ZSQBenchError(f"annotations {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        size = path.stat().st_size
        raise ZSQBenchError(f"annotations {path} ({size} bytes) are no JSON: {error}; copy the file again") from error
    for name in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ZSQBenchError(
                f"annotations {path} have no list {name!r}; expected COCO's instances format, with {', '.join(_LISTS)}"
            )
    return content


def _image(path: Path, entry: Any) -> ImageFile:
    try:
        image = ImageFile(int(entry["id"]), str(entry["file_name"]), int(entry["width"]), int(entry["height"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ZSQBenchError(
            f"{path}: image {_short(entry)} needs numbers 'id', 'width' and 'height' and a 'file_name'"
        ) from error
    if Path(image.name).is_absolute() or ".." in Path(image.name).parts:
        raise ZSQBenchError(f"{path}: file_name {image.name!r} of image {image.id} leaves the folder of the images")
    return image


def _category(path: Path, entry: Any) -> dict[str, Any]:
    try:
        return {"id": int(entry["id"]), "name": str(entry.get("name", entry["id"]))}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ZSQBenchError(f"{path}: category {_short(entry)} needs a number 'id'") from error


def _annotation(path: Path, entry: Any, images: Mapping[int, ImageFile], categories: set[int]) -> dict[str, Any]:
    try:
        number, image, category = (int(entry[name]) for name in ("id", "image_id", "category_id"))
        left, top, width, height = box = [float(value) for value in entry["bbox"]]
        area, crowd = float(entry.get("area", width * height)), int(entry.get("iscrowd", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ZSQBenchError(
            f"{path}: annotation {_short(entry)} needs numbers 'id', 'image_id' and 'category_id', and 'bbox' [left, "
            "top, width, height]"
        ) from error
    if image not in images:
        raise ZSQBenchError(f"{path}: annotation {number} is of image {image}, which is not in the list")
    if category not in categories:
        raise ZSQBenchError(f"{path}: annotation {number} is of category {category}, which is not in the list")
    size = images[image]
    inside = min(left, top) >= -SLACK and left + width <= size.width + SLACK and top + height <= size.height + SLACK
    if not inside or not min(width, height) >= 0:
        raise ZSQBenchError(
            f"{path}: the box {box} of annotation {number} is outside of image {image}, which is {size.width} x "
            f"{size.height} pixels; expected [left, top, width, height] in pixels"
        )
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
    }


def _only_once(path: Path, what: str, numbers: Sequence[int]) -> None:
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise ZSQBenchError(f"{path}: {what} {number} is there twice")
        seen.add(number)


def _short(entry: Any) -> str:
    text = str(entry)
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line has room for so much
