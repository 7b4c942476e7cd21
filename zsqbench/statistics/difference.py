"""The difference between two methods that were measured on the same images: its size, and its significance.

A value says how well a network did on one image, from 0 to 1. Most often it is right or wrong. Differences are in
points, of means in percent. A mean has two sources of chance, images and seeds. Neither replaces the other: with three
seeds, a hundred images are not three hundred.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, Self

from zsqbench.errors import ZSQBenchError
from zsqbench.statistics.counts import SIGNIFICANT, Counts, mcnemar
from zsqbench.statistics.intervals import half_width, p_of
from zsqbench.statistics.resampling import error_of
from zsqbench.statistics.samples import Measured, Resampled, Samples, matched, paired

if TYPE_CHECKING:
    import numpy as np

MIN_SEEDS = 3
"""With fewer common seeds a difference is stated only for these seeds.

Two seeds leave one degree of freedom. The interval is then 12.7 standard errors to each side, and says almost nothing.
"""

Scope = Literal["for these seeds", "over seeds"]
"""The networks of a statement: networks of these seeds, or networks of any seed. Images vary in both."""


@dataclass(frozen=True)
class Difference:
    """By how much the first of two methods is better, in points.

    `low` to `high` is the 95 % interval, `narrow` the 90 % interval. `p` is two-sided. `seeds` is the number of common
    seeds. 0: neither method uses seeds.
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
    """Standard deviation over seeds, of the mean over images. None: there is only one seed."""
    only_first: int | None = None
    """How many images only the first method has right. This and the next two are only known for one row of right and
    wrong."""
    only_second: int | None = None
    mid_p: float | None = None
    """McNemar's mid-p. It is less cautious than the exact `p` (Fagerland, Lydersen and Laake 2013)."""

    @property
    def significant(self) -> bool:
        """True if chance gives such a large difference in less than 5 of 100 cases."""
        return self.p < SIGNIFICANT

    def within(self, margin: float) -> bool:
        """True if the methods are equivalent: two one-sided tests at 5 % place the difference within ±margin points.

        Then the 90 % interval is inside (Schuirmann 1987). Raises ZSQBenchError for a margin below 0.
        """
        if not margin > 0:
            raise ZSQBenchError(f"a margin of {margin} points; expected more than 0")
        return -margin < self.narrow[0] and self.narrow[1] < margin


class Test(Protocol):
    """The test of a mean difference of two methods, and its interval. All are shares, -1 to 1."""

    @property
    def p(self) -> float:
        """The two-sided p."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval at level 1 - alpha."""


@dataclass(frozen=True)
class Errors:
    """A difference, and its standard errors over images and over seeds."""

    mean: float
    images: int
    by_images: float
    seeds: int = 0
    by_seeds: float = 0.0
    """Number of seeds. 0: the statement is only for these seeds."""
    shares: bool = True
    """True if values are means over images, each from 0 to 1."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """The difference, with half of the width to both sides. Differences of shares stay within -1 to 1."""
        half = float(half_width(alpha, self.images, self.by_images, self.seeds, self.by_seeds, shares=self.shares))
        end = 1.0 if self.shares else math.inf
        return max(self.mean - half, -end), min(self.mean + half, end)

    @property
    def p(self) -> float:
        """The alpha at which the interval ends at 0. It is below 5 % exactly if the 95 % interval does not hold 0."""
        return float(p_of(self.mean, self.images, self.by_images, self.seeds, self.by_seeds, shares=self.shares))


def compare(first: Measured, second: Measured, scope: Scope | None = None) -> Difference:
    """The difference of two methods on the same images, over their common seeds.

    A method without seeds is compared with each seed of the other method. If no scope is given, it is `over seeds` from
    3 seeds on, and `for these seeds` with fewer.

    One row of right and wrong: p is from McNemar's exact test, the interval is Tango's. The interval is not exact: if p
    is just above 5 %, it may still leave out 0. Then p decides. Other cases, for these seeds: the t test over images,
    each with its mean over seeds. Other cases, over seeds: images and seeds both vary, and are crossed, see `Errors`.
    For a metric on resampled images, the standard error over images is from the jackknife.

    Raises ZSQBenchError for different images, for no common seed, and for one seed with `over seeds`.
    """
    pair = _Pair.resampled(first, second) if isinstance(first, Resampled) else _Pair.of(first, second)
    test, chosen = pair.assess(scope)
    (low, high), narrow = (tuple(100 * end for end in test.interval(alpha)) for alpha in (SIGNIFICANT, 2 * SIGNIFICANT))
    counts = (test.only_first, test.only_second) if isinstance(test, Counts) else (None, None)
    return Difference(
        points=100 * float(pair.by_seed.mean()),
        low=low,
        high=high,
        narrow=(narrow[0], narrow[1]),
        p=test.p,
        scope=chosen,
        seeds=pair.seeds,
        images=first.images,
        image_deviation=100 * pair.by_images * math.sqrt(first.images),
        seed_deviation=100 * float(pair.by_seed.std(ddof=1)) if len(pair.by_seed) > 1 else None,
        only_first=counts[0],
        only_second=counts[1],
        mid_p=mcnemar(test.only_first, test.only_second)[1] if isinstance(test, Counts) else None,
    )


@dataclass(frozen=True, eq=False)
class _Pair:
    """The differences of two methods on the same images."""

    by_seed: "np.ndarray"
    """[common seeds, at least 1]. Differences of shares are from -1 to 1."""
    by_images: float
    """Standard error over images, of the mean over seeds."""
    images: int
    seeds: int
    """Number of common seeds. 0: neither method uses seeds."""
    counts: Counts | None = None
    """Counts of one row of right and wrong. None: the values are of another kind."""
    shares: bool = True

    @classmethod
    def of(cls, first: Samples, second: Measured) -> Self:
        """The differences from the values of images."""
        differences, seeds = paired(first, second)
        by_image, images = differences.mean(axis=0), first.images
        is_counted = len(differences) == 1 and differences.dtype.kind == "i"
        return cls(
            by_seed=differences.mean(axis=1),
            by_images=float(by_image.std(ddof=1)) / math.sqrt(images),
            images=images,
            seeds=seeds,
            counts=Counts(int((by_image > 0).sum()), int((by_image < 0).sum()), images) if is_counted else None,
        )

    @classmethod
    def resampled(cls, first: Resampled, second: Measured) -> Self:
        """The differences from the values on resampled images."""
        rows, seeds = matched(first, second)
        pairs = list(zip((first, second), rows, strict=True))
        one, other = (each.values[chosen].mean(axis=0) for each, chosen in pairs)
        reached, beside = (each.by_seed[chosen] for each, chosen in pairs)
        return cls(
            reached - beside, float(error_of((one - other).std(ddof=1), len(one))), first.images, seeds, shares=False
        )

    def assess(self, scope: Scope | None) -> tuple[Test, Scope]:
        """The test of the difference, and its scope."""
        rows = len(self.by_seed)
        chosen = scope_of(rows, scope)
        if self.counts is not None:
            return self.counts, chosen
        errors = Errors(float(self.by_seed.mean()), self.images, self.by_images, shares=self.shares)
        if chosen == "over seeds":
            errors = replace(errors, seeds=rows, by_seeds=float(self.by_seed.std(ddof=1)) / math.sqrt(rows))
        return errors, chosen


def scope_of(rows: int, asked: Scope | None = None) -> Scope:
    """The scope of a comparison with so many seeds. Raises ZSQBenchError for one seed with `over seeds`."""
    if asked == "over seeds" and rows == 1:
        raise ZSQBenchError("one seed in common; a statement over seeds needs at least 2")
    return asked or ("over seeds" if rows >= MIN_SEEDS else "for these seeds")
