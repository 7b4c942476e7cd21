"""The matches of boxes by COCOeval, image by image, and average precision with any weights of images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2_000_000
"""The most numbers in memory at a time, for each of a few arrays."""

PRECISIONS = {"mAP": slice(None), "mAP50": slice(1)}
"""Figures, and the IoU thresholds over which each is a mean."""


@dataclass(frozen=True)
class Matches:
    """The boxes that a detector found (any size, at most 100 of an image and category), as COCOeval matched them.

    They are sorted by category, then by score, the highest first, in COCOeval's order.
    """

    category: "np.ndarray"
    """int32 [K]: index of the category in the data."""
    image: "np.ndarray"
    """int32 [K]: index of the image among the evaluation images."""
    matched: "np.ndarray"
    """int16 [K]: bit t is set if the box is matched at IoU 0.5 + 0.05 t, for t from 0 to 9."""
    ignored: "np.ndarray"
    """int16 [K]: bit t is set if the box does not count at this IoU, for example because it is in a crowd."""
    truth: "np.ndarray"
    """int32 [categories, images]: number of boxes to find."""

    @classmethod
    def of(cls, evaluation: Any) -> Self:
        """Read a COCOeval for boxes, with categories, after its `evaluate` was called."""
        import numpy as np

        params = evaluation.params
        images, sizes, most = len(params.imgIds), len(params.areaRng), params.maxDets[-1]
        truth = np.zeros((len(params.catIds), images), dtype=np.int32)
        parts = [np.zeros((4, 0), dtype=np.int32)]
        for category in range(len(params.catIds)):
            start = category * sizes * images  # entries for all sizes come first
            there = [(at, found) for at, found in enumerate(evaluation.evalImgs[start : start + images]) if found]
            if not there:
                continue
            for at, found in there:
                truth[category, at] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
            scores = np.concatenate([found["dtScores"][:most] for _, found in there])
            order = np.argsort(-scores, kind="mergesort")
            places = np.concatenate([np.full(len(found["dtScores"][:most]), at) for at, found in there])
            bits = [
                np.concatenate([_bits(found[name][:, :most]) for _, found in there])
                for name in ("dtMatches", "dtIgnore")
            ]
            parts.append(np.stack([np.full(len(order), category), places, *bits]).astype(np.int32)[:, order])
        category, image, matched, ignored = np.concatenate(parts, axis=1)
        return cls(category, image, matched.astype(np.int16), ignored.astype(np.int16), truth)

    def average_precisions(self, weights: "np.ndarray") -> "dict[str, np.ndarray]":
        """Figures in percent, [R]. `weights`, int32 [R, images], say how often each image counts.

        With weights of 1 the figures are COCOeval's. Otherwise they are COCOeval's for as many copies of each image,
        except for boxes of one image with equal scores, whose order differs there. A category without boxes to find
        does not count. Without any box to find, a figure is NaN.
        """
        import numpy as np

        to_find = self.truth @ weights.T > 0  # [categories, R]
        by_category = np.stack([np.zeros((10, len(weights))), *self._by_category(weights)])[1:]
        with np.errstate(invalid="ignore"):
            return {
                name: 100 * np.where(to_find, by_category[:, chosen].mean(axis=1), 0).sum(axis=0) / to_find.sum(axis=0)
                for name, chosen in PRECISIONS.items()
            }

    def _by_category(self, weights: "np.ndarray") -> "Iterator[np.ndarray]":
        """Average precision of each category, [10 thresholds, R]. It has no meaning if there is no box to find."""
        import numpy as np

        bounds = np.searchsorted(self.category, np.arange(len(self.truth) + 1))
        thresholds = 1 << np.arange(10)[:, None]
        for to_find, start, end in zip(self.truth, bounds, bounds[1:], strict=False):
            hits, ignores = ((bits[start:end] & thresholds).astype(bool) for bits in (self.matched, self.ignored))
            blocks = np.array_split(weights, math.ceil(len(weights) * (end - start + 1) / BLOCK))
            yield np.concatenate(
                [
                    _average_precisions(block[:, self.image[start:end]], hits, ignores, block @ to_find)
                    for block in blocks
                ],
                axis=1,
            )


def _average_precisions(
    weights: "np.ndarray", hits: "np.ndarray", ignores: "np.ndarray", to_find: "np.ndarray"
) -> "np.ndarray":
    """Mean precision over 101 recalls, [10 thresholds, R], interpolated as in COCOeval.

    `weights` [R, K] say how often each box counts, by score. `hits` and `ignores` [10, K] say which boxes are matched
    and which do not count. `to_find` [R] is the number of boxes to find. Precision is highest at matched boxes, and
    recall rises only there. So only matched boxes are used.
    """
    import numpy as np

    recalls = np.linspace(0.0, 1.0, 101)
    before = _cumulated(weights)
    means = np.zeros((len(hits), len(weights)))
    for mean, matched, ignored in zip(means, hits, ignores, strict=True):
        right, apart = np.flatnonzero(matched & ~ignored), np.flatnonzero(ignored)
        found = before[:, right + 1] - _cumulated(weights[:, apart])[:, np.searchsorted(apart, right)]
        true = _cumulated(weights[:, right])[:, 1:]
        precision = true / (found + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(recalls, true / np.maximum(to_find, 1)[:, None], side="right")
        mean[:] = (np.diff(reached, axis=1, prepend=0) * best).sum(axis=1) / len(recalls)
    return means


def _cumulated(weights: "np.ndarray") -> "np.ndarray":
    """Sums of the first 0, 1, ... columns of [R, K], [R, K + 1]."""
    import numpy as np

    sums = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int32)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _bits(found: "np.ndarray") -> "np.ndarray":
    """A number of 10 bits for each box, from [10, K]. A value that is not 0 sets a bit."""
    import numpy as np

    bits: np.ndarray = (np.asarray(found) != 0).T @ (1 << np.arange(len(found)))
    return bits
