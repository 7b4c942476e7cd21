"""The size of a difference that would be found, the images or seeds to find it, and a verdict in words."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from zsqbench.statistics.counts import SIGNIFICANT
from zsqbench.statistics.difference import Difference
from zsqbench.statistics.intervals import Numbers, t_quantile

if TYPE_CHECKING:
    import numpy as np

POWER = 0.8
"""The wanted probability of finding a difference, for planning the number of images or seeds."""


def detectable(images: int, image_deviation: Numbers, seeds: int = 0, seed_deviation: Numbers = 0.0) -> "np.ndarray":
    """The difference that is found with a probability of 80 %, in the unit of the deviations.

    Deviations are those of a difference. With at least 2 seeds it is a difference over seeds: the differences that
    images alone and seeds alone would find are added in squares, as in the interval.
    """
    import numpy as np

    return np.hypot(_effect(images) * image_deviation, _effect(seeds) * seed_deviation if seeds else 0.0)


@lru_cache(maxsize=256)
def _effect(count: int) -> float:
    """The mean, in standard deviations, that a t test over `count` values finds with a probability of 80 %."""
    from scipy.optimize import brentq

    beyond = (float(t_quantile(count - 1, SIGNIFICANT)) + 10) / math.sqrt(count)
    return float(brentq(lambda effect: _power(effect, count) - POWER, 0, beyond))


def _power(effect: float, count: float) -> float:
    """The probability that a two-sided t test over `count` values finds a mean of so many standard deviations.

    statsmodels has this function, but its import takes a second and 90 MB, in each run that ends with a table.
    """
    import numpy as np
    from scipy.special import nctdtr

    limit, center = t_quantile(count - 1, SIGNIFICANT), effect * math.sqrt(count)
    below = np.nan_to_num(nctdtr(count - 1, center, -limit))  # scipy has NaN for some of the smallest
    return float(1 - nctdtr(count - 1, center, limit) + below)


def needed(points: float, deviation: float) -> float:
    """How many images (or seeds) show a difference with a probability of 80 %, from the deviation over them.

    It is at least 2, and infinite for no difference.
    """
    from scipy.optimize import brentq

    if points == 0:
        return math.inf
    effect = abs(points) / deviation if deviation else math.inf
    if effect >= _effect(2):
        return 2.0
    return float(brentq(lambda count: _power(effect, count) - POWER, 2, (4 / effect) ** 2 + 20))


def verdict(difference: Difference, margin: float | None = None) -> str:
    """A verdict on the first method: "better", "worse", "equivalent within 1", or the images or seeds to decide.

    It ends in "for these seeds" if there are seeds and the statement is only about them.
    """
    said = [("better" if difference.points > 0 else "worse")] if difference.significant else []
    if margin is not None and difference.within(margin):
        said.append(f"equivalent within {margin:g}")
    scope = f", {difference.scope}" if difference.seeds and difference.scope == "for these seeds" else ""
    return (" but ".join(said) or _cannot_be_told(difference)) + scope


def _cannot_be_told(difference: Difference) -> str:
    """How many images would decide, or how many seeds if these matter more."""
    seeds, of_seeds = difference.seeds, difference.seed_deviation or 0.0
    if difference.scope == "over seeds" and _weight(seeds, of_seeds) > _weight(
        difference.images, difference.image_deviation
    ):
        have, what, count = seeds, "seeds", max(needed(difference.points, of_seeds), seeds + 1)
    else:
        have, what, count = difference.images, "images", needed(difference.points, difference.image_deviation)
    rounded = f"about {float(f'{count:.2g}'):,.0f} would be needed" if math.isfinite(count) else "no difference is seen"
    return f"cannot be told with {have} {what}; {rounded}"


def _weight(count: int, deviation: float) -> float:
    """Half of the t interval of so many values with this deviation."""
    return float(t_quantile(count - 1, SIGNIFICANT)) * deviation / math.sqrt(count)
