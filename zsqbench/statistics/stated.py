"""Compare a measured mean with a number that others state: their difference, with an interval.

All numbers are in points, of means in percent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zsqbench.statistics.counts import SIGNIFICANT
from zsqbench.statistics.difference import Scope, scope_of
from zsqbench.statistics.intervals import half_width, t_quantile
from zsqbench.statistics.samples import Measured, Samples

FEWEST_RUNS = 2
"""A stated deviation is of at least two runs, so the standard error of the stated mean is at most deviation / √2."""


@dataclass(frozen=True)
class Distance:
    """The measured minus the stated mean, in points, with its 95 % interval."""

    points: float
    low: float
    high: float
    scope: Scope

    @property
    def falls_short(self) -> bool:
        """True if the measured mean is significantly below the stated mean: the whole interval is below 0."""
        return self.high < 0


def distance(measured: Measured, stated: float, deviation: float | None = None) -> Distance:
    """The distance of the mean of these values from a stated mean. Without a stated deviation it is exact.

    The interval is over images and, from 3 seeds on, over seeds, each part as in `intervals.half_width`. The stated
    mean adds its own part in squares: a normal interval with the largest standard error that the deviation allows. If
    the stated mean is from the same images, the part of images is cautious: common effects would cancel out, but nobody
    states which images were right.
    """
    import numpy as np

    scope = scope_of(len(measured.values))
    rows = len(measured.values) if scope == "over seeds" else 0
    by_seeds = float(measured.by_seed.std(ddof=1)) / math.sqrt(rows) if rows else 0.0
    shares = isinstance(measured, Samples)
    half = 100 * half_width(SIGNIFICANT, measured.images, measured.by_images, rows, by_seeds, shares=shares)
    return _around(measured.mean - stated, float(np.hypot(half, _half_of_stated(deviation))), scope)


def distance_of_means(means: Sequence[float], stated: float, deviation: float | None = None) -> Distance | None:
    """The distance if single images are not known: only over seeds, from 2 on. None: fewer than 2 seeds."""
    import numpy as np

    if len(means) < FEWEST_RUNS:
        return None
    values = np.asarray(means, dtype=float)
    half = t_quantile(len(values) - 1, SIGNIFICANT) * values.std(ddof=1) / math.sqrt(len(values))
    return _around(float(values.mean()) - stated, float(np.hypot(half, _half_of_stated(deviation))), "over seeds")


def _around(points: float, half: float, scope: Scope) -> Distance:
    return Distance(points, points - half, points + half, scope)


def _half_of_stated(deviation: float | None) -> float:
    from scipy.special import ndtri

    return -float(ndtri(SIGNIFICANT / 2)) * (deviation or 0.0) / math.sqrt(FEWEST_RUNS)
