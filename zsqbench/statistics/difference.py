"""A difference between two methods that were measured on the same images: how large it is, and is it more than chance.

A value says of one image how well a network did, from 0 to 1; most often it is right or wrong. Differences are in
points, of means in percent. A mean has two sources of chance, images and seeds, and neither replaces the other: with
three seeds, a hundred images are not three hundred.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from zsqbench.errors import ZSQBenchError
from zsqbench.statistics.counts import SIGNIFICANT, Counts, mcnemar
from zsqbench.statistics.intervals import half_width, p_of

if TYPE_CHECKING:
    import numpy as np

MIN_SEEDS = 3
"""With fewer seeds in common a difference is stated for these seeds only.

Two seeds leave one degree of freedom: the interval is 12.7 standard errors to each side, and says almost nothing.
"""

Scope = Literal["for these seeds", "over seeds"]
"""The networks that a statement is about: those that these seeds gave, or those of any seed. Images vary in both."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The values of a method, [seeds, images], bool or 0 to 1; one row, and no seed, where a method uses none.

    Raises ZSQBenchError where rows and seeds do not fit, and for other values.
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
    def mean(self) -> float:
        """Mean over images and seeds, in percent."""
        return 100 * float(self.values.mean())


@dataclass(frozen=True)
class Difference:
    """By how much the first of two methods is better, in points.

    `low` to `high` is the 95 % interval, `narrow` the 90 % one. `p` is two-sided. `seeds` counts those in common, which
    are 0 where neither method uses one.
    """

    points: float
    low: float
    high: float
    narrow: tuple[float, float]
    p: float
    scope: Scope
    seeds: int
    images: int
    image_deviation: float
    """Standard deviation over images, of the mean over seeds."""
    seed_deviation: float | None = None
    """Standard deviation over seeds, of the mean over images; none for one."""
    only_first: int | None = None
    """How many images the first method alone has right; known for one row of right and wrong, like the two below."""
    only_second: int | None = None
    mid_p: float | None = None
    """McNemar's mid-p: less cautious than `p`, which is exact (Fagerland, Lydersen and Laake 2013)."""

    @property
    def significant(self) -> bool:
        """True if chance would bring as large a difference in less than 5 of 100 cases."""
        return self.p < SIGNIFICANT

    def within(self, margin: float) -> bool:
        """True if the methods are equivalent: two one-sided tests at 5 % place the difference within ±margin points.

        The 90 % interval lies inside then (Schuirmann 1987). Raises ZSQBenchError for a margin below 0.
        """
        if not margin > 0:
            raise ZSQBenchError(f"a margin of {margin} points; expected more than 0")
        return -margin < self.narrow[0] and self.narrow[1] < margin


class Test(Protocol):
    """How a mean difference of two methods is tested, and the interval that goes with it. All are shares, -1 to 1."""

    @property
    def p(self) -> float:
        """Two-sided."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval at level 1 - alpha."""


@dataclass(frozen=True)
class Errors:
    """A mean difference, and its standard errors over images and over seeds."""

    mean: float
    images: int
    by_images: float
    seeds: int = 0
    by_seeds: float = 0.0
    """0 where only these seeds are meant."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """The mean and half of the width to both sides, within -1 to 1."""
        half = float(half_width(alpha, self.images, self.by_images, self.seeds, self.by_seeds))
        return max(self.mean - half, -1.0), min(self.mean + half, 1.0)

    @property
    def p(self) -> float:
        """The alpha at which the interval ends at 0: below 5 % just where the 95 % interval does not hold 0."""
        return float(p_of(self.mean, self.images, self.by_images, self.seeds, self.by_seeds))


def compare(first: Samples, second: Samples, scope: Scope | None = None) -> Difference:
    """The difference of two methods on the same images, over the seeds that they have in common.

    A method without seeds is compared with each seed of the other. From 3 seeds on the scope is `over seeds` unless it
    is given, with fewer `for these seeds`.

    One row of right and wrong: p is McNemar's exact test, the interval Tango's. The interval is not exact: where p is
    just above 5 %, it may leave out 0 all the same, and p decides. Else, for these seeds: the t test over images, each
    with its mean over seeds. Over seeds: images and seeds both vary, and are crossed; `Errors` says how.

    Raises ZSQBenchError for other images, for no seed in common, and for one seed with `over seeds`.
    """
    differences, seeds = paired(first, second)
    test, chosen = assess(differences, scope)
    (low, high), narrow = (tuple(100 * end for end in test.interval(alpha)) for alpha in (SIGNIFICANT, 2 * SIGNIFICANT))
    counts = (test.only_first, test.only_second) if isinstance(test, Counts) else (None, None)
    return Difference(
        points=100 * float(differences.mean()),
        low=low,
        high=high,
        narrow=(narrow[0], narrow[1]),
        p=test.p,
        scope=chosen,
        seeds=seeds,
        images=differences.shape[1],
        image_deviation=100 * float(differences.mean(axis=0).std(ddof=1)),
        seed_deviation=100 * float(differences.mean(axis=1).std(ddof=1)) if len(differences) > 1 else None,
        only_first=counts[0],
        only_second=counts[1],
        mid_p=mcnemar(test.only_first, test.only_second)[1] if isinstance(test, Counts) else None,
    )


def assess(differences: "np.ndarray", scope: Scope | None = None) -> tuple[Test, Scope]:
    """The test of differences [seeds, images] from -1 to 1, integers where they are of right and wrong; its scope."""
    rows, images = differences.shape
    chosen = scope_of(rows, scope)
    if rows == 1 and differences.dtype.kind == "i":
        return Counts(int((differences > 0).sum()), int((differences < 0).sum()), images), chosen
    by_image = differences.mean(axis=0)
    errors = Errors(float(by_image.mean()), images, float(by_image.std(ddof=1)) / math.sqrt(images))
    if chosen == "over seeds":
        by_seeds = float(differences.mean(axis=1).std(ddof=1)) / math.sqrt(rows)
        errors = replace(errors, seeds=rows, by_seeds=by_seeds)
    return errors, chosen


def scope_of(rows: int, asked: Scope | None = None) -> Scope:
    """The scope of a comparison of so many seeds. Raises ZSQBenchError for one seed with `over seeds`."""
    if asked == "over seeds" and rows == 1:
        raise ZSQBenchError("one seed in common; a statement over seeds needs at least 2")
    return asked or ("over seeds" if rows >= MIN_SEEDS else "for these seeds")


def paired(first: Samples, second: Samples) -> "tuple[np.ndarray, int]":
    """Differences of two methods, [seeds, images], and how many seeds are in common; 0 where neither uses one.

    They are integers where the values of both are right or wrong. Raises ZSQBenchError as `compare`.
    """
    if first.images != second.images:
        raise ZSQBenchError(f"values of {first.images} and of {second.images} images; expected the same images")
    rows = rows_in_common(first.seeds, second.seeds)
    one, other = (each.values[chosen] for each, chosen in zip((first, second), rows, strict=True))
    seeds = max(len(each.seeds) and len(values) for each, values in ((first, one), (second, other)))
    if one.dtype == other.dtype == bool:
        return one.astype("int8") - other.astype("int8"), seeds
    return one.astype(float) - other.astype(float), seeds


def rows_in_common(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """The rows of both methods that are compared, by their seeds; a method without seeds has one row.

    Raises ZSQBenchError where they have no seed in common.
    """
    if not first or not second:
        return list(range(max(len(first), 1))), list(range(max(len(second), 1)))
    common = [seed for seed in first if seed in second]
    if not common:
        one, other = (", ".join(map(str, seeds)) for seeds in (first, second))
        raise ZSQBenchError(f"no seeds in common: one has {one}, the other {other}; run a seed of both")
    return [first.index(seed) for seed in common], [second.index(seed) for seed in common]


def unpacked(correct: str, images: int) -> "np.ndarray":
    """Which images were right, bool [images], as a row holds it: packed bits in base64, the first in the highest bit.

    Raises ZSQBenchError where these are not the bits of so many images.
    """
    import numpy as np

    packed = np.frombuffer(base64.b64decode(correct), dtype=np.uint8)
    if len(packed) != math.ceil(images / 8):
        raise ZSQBenchError(f"{len(packed)} bytes of bits for {images} images; expected {math.ceil(images / 8)}")
    return np.unpackbits(packed, count=images).astype(bool)
