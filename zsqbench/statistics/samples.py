"""The values of a method for comparisons: of each image, or of a metric on resampled images.

Methods are paired by images and by seeds.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.statistics.resampling import error_of, groups_of

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Samples:
    """The values of a method, [seeds, images], bool or 0 to 1. A method without seeds has one row and no seed.

    Raises ZSQBenchError if rows and seeds do not fit, and for other values.
    """

    values: "np.ndarray"
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rows, images = self.values.shape
        if rows != max(len(self.seeds), 1) or len(set(self.seeds)) != len(self.seeds):
            raise ZSQBenchError(f"{rows} rows of values for the seeds {self.seeds}; expected one row for each seed")
        if images < 2:  # noqa: PLR2004 - a deviation needs two
            raise ZSQBenchError(f"values of {images} images; expected at least 2")
        if not (self.values.min() >= 0 and self.values.max() <= 1):
            raise ZSQBenchError(f"values from {self.values.min()} to {self.values.max()}; expected 0 to 1")

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self.values.shape[1])

    @property
    def by_seed(self) -> "np.ndarray":
        """The mean over images, [seeds]."""
        means: np.ndarray = self.values.mean(axis=1)
        return means

    @property
    def by_images(self) -> float:
        """The standard error over images of the mean over seeds, as a share."""
        return float(self.values.mean(axis=0).std(ddof=1)) / math.sqrt(self.images)

    @property
    def mean(self) -> float:
        """Mean over images and seeds, in percent."""
        return 100 * float(self.values.mean())


@dataclass(frozen=True, eq=False)
class Resampled:
    """A metric that is not a mean over images, such as mAP: its values, and its values on resampled images.

    Raises ZSQBenchError if rows and seeds do not fit, and for other numbers of resamples.
    """

    by_seed: "np.ndarray"
    """[seeds], percent divided by 100. A method without seeds has one value and no seed."""
    values: "np.ndarray"
    """[seeds, groups]: the values on `resamples` of the images."""
    images: int
    """How many images there are."""
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.by_seed)
        if rows != max(len(self.seeds), 1) or len(set(self.seeds)) != len(self.seeds):
            raise ZSQBenchError(f"{rows} values for the seeds {self.seeds}; expected one for each seed")
        expected = rows, groups_of(self.images)
        if self.images < 2 or self.values.shape != expected:  # noqa: PLR2004 - a deviation needs two
            raise ZSQBenchError(
                f"values on resampled images {self.values.shape} of {self.images} images; expected {expected}, and at "
                "least 2 images"
            )

    @property
    def by_images(self) -> float:
        """The standard error over images of the mean over seeds, in percent divided by 100."""
        return float(error_of(self.values.mean(axis=0).std(ddof=1), self.values.shape[1]))

    @property
    def mean(self) -> float:
        """Mean over seeds, in percent."""
        return 100 * float(self.by_seed.mean())


Measured = Samples | Resampled
"""The values of a method."""


def paired(first: Samples, second: Measured) -> "tuple[np.ndarray, int]":
    """Differences of two methods, [seeds, images], and the number of common seeds (0: neither uses seeds).

    The differences are integers if all values are right or wrong. Raises ZSQBenchError as `compare`.
    """
    rows, seeds = matched(first, second)
    one, other = (each.values[chosen] for each, chosen in zip((first, second), rows, strict=True))
    if one.dtype == other.dtype == bool:
        return one.astype("int8") - other.astype("int8"), seeds
    return one.astype(float) - other.astype(float), seeds


def matched(first: Measured, second: Measured) -> tuple[tuple[list[int], list[int]], int]:
    """The rows of both methods that are compared, and the number of their seeds. Raises ZSQBenchError as `compare`."""
    if type(first) is not type(second):
        raise ZSQBenchError("one method has values of images, the other on resampled images; expected the same kind")
    if first.images != second.images:
        raise ZSQBenchError(f"values of {first.images} and of {second.images} images; expected the same images")
    rows = rows_in_common(first.seeds, second.seeds)
    return rows, max(len(each.seeds) and len(chosen) for each, chosen in zip((first, second), rows, strict=True))


def rows_in_common(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """The rows of both methods that are compared, by their seeds. A method without seeds has one row.

    Raises ZSQBenchError if they have no common seed.
    """
    if not first or not second:
        return list(range(max(len(first), 1))), list(range(max(len(second), 1)))
    common = [seed for seed in first if seed in second]
    if not common:
        one, other = (", ".join(map(str, seeds)) for seeds in (first, second))
        raise ZSQBenchError(f"no common seeds: one has {one}, the other {other}; run both with the same seed")
    return [first.index(seed) for seed in common], [second.index(seed) for seed in common]


def unpacked(correct: str, images: int) -> "np.ndarray":
    """Which images were right, bool [images], from a row: packed bits in base64, the first in the highest bit.

    Raises ZSQBenchError if the bits do not fit the number of images.
    """
    import numpy as np

    packed = np.frombuffer(base64.b64decode(correct), dtype=np.uint8)
    if len(packed) != math.ceil(images / 8):
        raise ZSQBenchError(f"{len(packed)} bytes of bits for {images} images; expected {math.ceil(images / 8)}")
    return np.unpackbits(packed, count=images).astype(bool)
