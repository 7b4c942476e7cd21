"""Any metric of images has a standard error over images: it is computed again without some of them (the jackknife)."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST = 500
"""Most groups of images that are left out, one after the other: a deviation of so many is known to 3 %."""

_SEED = 0


def groups_of(images: int) -> int:
    """The number of groups that so many images are left out in: each image alone, up to 500."""
    return min(images, MOST)


def resamples(images: int) -> "np.ndarray":
    """How often each image counts, int32 [groups, images]: each row leaves one group out, and has the others once.

    They are the same for all networks, on all machines. Therefore values that two networks reach on them are paired.
    """
    import numpy as np

    groups = groups_of(images)
    shuffled = np.random.RandomState(_SEED).permutation(images)  # its numbers are the same in all versions of numpy
    weights = np.ones((groups, images), dtype=np.int32)
    weights[np.arange(images) % groups, shuffled] = 0
    return weights


def error_of(deviation: "np.ndarray", groups: int) -> "np.ndarray":
    """The standard error of a metric over images, by the standard deviation of its values on `resamples`.

    The jackknife's variance is never too small on average (Efron and Stein 1981, Annals of Statistics 9:586-596). The
    bootstrap's is, for mAP: with 50 images its standard error was 3.5 % too small, and tests by it found a difference
    between equal detectors in 5.7 % of 6,000 cases, those by the jackknife in 4.0 % (benchmarks/significance.py).
    """
    return deviation * (groups - 1) / math.sqrt(groups)
