"""The standard error of any metric over images: compute it again without some images (the jackknife)."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST = 500
"""The most groups of images that are left out in turn. A deviation of so many values is known to 3 %."""

_SEED = 0


def groups_of(images: int) -> int:
    """The number of groups for so many images. Up to 500 images, each image is a group."""
    return min(images, MOST)


def resamples(images: int) -> "np.ndarray":
    """How often each image counts, int32 [groups, images]. Each row leaves one group out, and counts the others once.

    The counts are the same for all networks, on all machines. So values of two networks are paired.
    """
    import numpy as np

    groups = groups_of(images)
    shuffled = np.random.RandomState(_SEED).permutation(images)  # it draws the same numbers in all versions of numpy
    weights = np.ones((groups, images), dtype=np.int32)
    weights[np.arange(images) % groups, shuffled] = 0
    return weights


def error_of(deviation: "np.ndarray", groups: int) -> "np.ndarray":
    """The standard error of a metric over images, from the standard deviation of its values on `resamples`.

    The jackknife's variance is never too small on average (Efron and Stein 1981, Annals of Statistics 9:586-596). The
    bootstrap's variance is too small for mAP. With 50 images its standard error was 3.5 % too small, and its tests
    found a difference between equal detectors in 5.7 % of 6,000 cases. Tests of the jackknife found one in 4.0 %
    (benchmarks/significance.py).
    """
    return deviation * (groups - 1) / math.sqrt(groups)
