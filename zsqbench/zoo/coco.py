"""The boxes that a detector found, and COCO's figures of them by pycocotools."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsqbench.zoo.matches import Matches

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
"""COCO's twelve figures, in its order: average precision over IoU thresholds 0.5 to 0.95, and average recall."""

LOW, FOUND, FEWEST, CHANCE = 10.0, 5.0, 10, 0.1
"""Thresholds for the check that a detector's labels are not random, see `BoxesAlone`.

The check takes another evaluation, so it is only made if mAP50 is below LOW percent. Without categories, mAP50 must be
at least FOUND percent, so that the detector really finds objects, and at least FEWEST boxes must be found. Labels count
as random if at most a tenth of them (CHANCE) is right, as with random labels and ten categories. Of the 193 boxes that
FastestDet finds in 50 images of COCO, 142 have the right label. 8 have it with numbers that are one too large, 6 with
numbers that are one too small, and 1 with random labels.
"""


@dataclass(frozen=True)
class Detections:
    """Boxes that a detector found, one row each, of all images."""

    image_ids: "np.ndarray[Any, Any]"
    """int64 [K]."""
    categories: "np.ndarray[Any, Any]"
    """int64 [K], numbers of images in the data."""
    boxes: "np.ndarray[Any, Any]"
    """float32 [K, 4]: left, top, width, height, in pixels of the image."""
    scores: "np.ndarray[Any, Any]"
    """float32 [K]."""

    @classmethod
    def of(cls, rows: "Sequence[tuple[int, Mapping[str, Tensor]]]") -> "Detections":
        """Detections from images by number, each with `boxes` (left, top, right, bottom), `scores` and `labels`.

        Boxes with values or scores that are not finite do not count.
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
    """The twelve figures of COCOeval for boxes, in percent. `truth` is a dictionary in COCO's format.

    A figure for sizes or categories without boxes in the data is left out (COCOeval says -1).
    """
    return coco_evaluation(truth, found)[0]


def coco_evaluation(truth: Mapping[str, Any], found: Detections) -> tuple[dict[str, float], Matches]:
    """The figures of `evaluate`, and the matched boxes of each image."""
    evaluation = _evaluated(truth, found, categories=True)
    return _figures(evaluation), Matches.of(evaluation)


@dataclass(frozen=True)
class BoxesAlone:
    """The result of a detector if labels do not count: boxes are matched to boxes of any category."""

    map50: float
    """Average precision at IoU 0.5, in percent."""
    matched: int
    """Number of boxes of the data that it found, at IoU 0.5."""
    right: int
    """Number of these boxes with the right category."""

    @classmethod
    def of(cls, truth: Mapping[str, Any], found: Detections) -> "BoxesAlone":
        """The result from COCOeval without categories."""
        evaluation = _evaluated(truth, found, categories=False)
        figures = _figures(evaluation)
        said, true = evaluation.cocoDt.anns, evaluation.cocoGt.anns
        pairs = [
            said[detection]["category_id"] == true[int(match)]["category_id"]
            for image in evaluation.evalImgs[: len(evaluation.params.imgIds)]  # entries for all sizes come first
            if image is not None
            for detection, match in zip(image["dtIds"], image["dtMatches"][0], strict=True)
            if match and not true[int(match)]["iscrowd"]
        ]
        return cls(figures.get("mAP50", 0.0), len(pairs), sum(pairs))

    @property
    def labels_are_chance(self) -> bool:
        """True if boxes are found, and labels are right only as often as by chance."""
        enough = self.map50 >= FOUND and self.matched >= FEWEST
        return enough and self.right <= CHANCE * self.matched


def _evaluated(truth: Mapping[str, Any], found: Detections, *, categories: bool) -> Any:
    """COCOeval for boxes, after its evaluation."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        data = COCO()
        data.dataset = dict(truth)
        data.createIndex()
        results = COCO()
        results.dataset = {name: truth[name] for name in ("images", "categories")} | {"annotations": [*_as_coco(found)]}
        results.createIndex()
        evaluation = COCOeval(data, results, "bbox")
        if not categories:
            evaluation.params.useCats = 0
            # boxes with labels that the data does not have also count
            evaluation.params.catIds = sorted({*evaluation.params.catIds, *found.categories.tolist()})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _figures(evaluation: Any) -> dict[str, float]:
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
