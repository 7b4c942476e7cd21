"""Compare two networks by the images that only one of them has right: a test, and an interval."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIGNIFICANT = 0.05
"""A difference is significant if chance gives it more rarely than this. Intervals have the level 1 minus this."""


@dataclass(frozen=True)
class Counts:
    """The result of one row of right and wrong: how many images only one method has right."""

    only_first: int
    only_second: int
    images: int

    @property
    def p(self) -> float:
        """The p of the exact McNemar test."""
        return float(exact_p(self.only_first, self.only_second))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval of Tango."""
        return tango(self.only_first, self.only_second, self.images, alpha)


def exact_p(only_first: "int | np.ndarray", only_second: "int | np.ndarray") -> "np.ndarray":
    """The exact McNemar test of one pair or of many: a two-sided sign test."""
    import numpy as np
    from scipy.special import bdtr

    fewer, trials = np.minimum(only_first, only_second), np.add(only_first, only_second)
    p: np.ndarray = np.minimum(2 * bdtr(fewer, np.asarray(trials, dtype=int), 0.5), 1.0)
    return p


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """The exact McNemar test on the images that only one of two networks has right: its p, and mid-p.

    Mid-p counts outcomes as probable as the observed one by half (Fagerland, Lydersen and Laake 2013, BMC Medical
    Research Methodology 13:91).
    """
    from scipy.stats import binom

    trials = only_first + only_second
    p, seen = float(exact_p(only_first, only_second)), float(binom.pmf(only_first, trials, 0.5))
    return p, p - (seen / 2 if only_first == only_second else seen)


def differs(only_first: int, only_second: int) -> bool:
    """True if two networks differ significantly, by the images that only one of them has right."""
    return float(exact_p(only_first, only_second)) < SIGNIFICANT


def tango(only_first: int, only_second: int, images: int, alpha: float = SIGNIFICANT) -> tuple[float, float]:
    """Tango's score interval at level 1 - alpha for a difference of two shares of the same images, from -1 to 1.

    Tango 1998, Statistics in Medicine 17:891-908. Neither scipy nor statsmodels has it; R's PropCIs does (scoreci.mp).
    """
    return -_tango_high(only_second, only_first, images, alpha), _tango_high(only_first, only_second, images, alpha)


def _tango_high(only_first: int, only_second: int, images: int, alpha: float) -> float:
    """The upper end of the interval: there the score test of a difference reaches alpha / 2."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    squared, seen = float(ndtri(alpha / 2)) ** 2, (only_first - only_second) / images

    def beyond(difference: float) -> float:
        # Equation 25 with the most likely share of `only_second` at this difference; squared, free of a quotient by 0.
        linear = (2 * images - only_first + only_second) * difference - only_first - only_second
        product = 8 * images * only_second * difference * (1 - difference)
        share = (math.sqrt(max(linear**2 + product, 0.0)) - linear) / (4 * images)
        variance = images * (2 * share + difference * (1 - difference))
        return (images * (seen - difference)) ** 2 - squared * variance

    start = seen + 1e-9  # if no image differs, the observed difference also solves the equation
    return float(brentq(beyond, start, 1.0)) if start < 1 else 1.0
