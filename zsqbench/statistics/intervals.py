"""Intervals of a mean difference over images and seeds, with p, for one pair or many pairs at once.

All differences and errors are shares, from -1 to 1. Errors are standard errors.
"""

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Numbers: TypeAlias = "float | np.ndarray"

TINY = 1e-200
"""The smallest p. Quantiles of smaller probabilities are not known well."""


def half_width(
    alpha: Numbers, images: int, by_images: Numbers, seeds: int, by_seeds: Numbers, *, shares: bool = True
) -> "np.ndarray":
    """Half of intervals at level 1 - alpha: the halves over images and over seeds, added in squares.

    Each is a t interval. Their sum in squares is the method of variance estimates recovery (Zou and Donner 2008,
    Statistics in Medicine 27:1693-1702). It counts the joint effect of images and seeds twice, so it is cautious. For
    `shares` of images, the part of images is at least Tango's interval for no differing image, because the deviation
    of few differing images is not known well. With 0 seeds, the interval is only for these seeds.

    In two known cases it holds less than 95 % (benchmarks/significance.py). First: few seeds of a method fail, but by
    far (mean 90 %, deviation 15 points), and the other method has no seeds. It is 79 % with 3 seeds, which most often
    show no failure, and 85 % with 10. Second: eight of 900 images get worse, the same with each seed. It is 89 %.
    """
    import numpy as np

    of_images = np.maximum(t_quantile(images - 1, alpha) * by_images, least(images, alpha) if shares else 0.0)
    width: np.ndarray = np.hypot(of_images, t_quantile(seeds - 1, alpha) * by_seeds if seeds else 0.0)
    return width


def p_of(
    mean: Numbers, images: int, by_images: Numbers, seeds: int, by_seeds: Numbers, *, shares: bool = True
) -> "np.ndarray":
    """The alpha at which each interval ends at 0."""
    import numpy as np
    from scipy.optimize.elementwise import find_root
    from scipy.special import ndtr, stdtr

    size, by_images, by_seeds = np.broadcast_arrays(np.abs(mean), by_images, by_seeds)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is no difference
        lowest = 2 * stdtr(images - 1, -size / by_images)
        if shares:
            lowest = np.fmax(lowest, 2 * ndtr(-np.sqrt(images * size / (1 - size))))
        if seeds:
            lowest = np.fmax(lowest, 2 * stdtr(seeds - 1, -size / by_seeds))  # no part alone is wider than the whole
    p: np.ndarray = np.where(size > 0, lowest, 1.0)
    unsolved = (size > 0) & (lowest > TINY) & (by_seeds > 0)
    if seeds and unsolved.any():
        given = size[unsolved], by_images[unsolved], by_seeds[unsolved]

        def beyond(
            log: "np.ndarray", size: "np.ndarray", by_images: "np.ndarray", by_seeds: "np.ndarray"
        ) -> "np.ndarray":
            above: np.ndarray = half_width(np.exp(log), images, by_images, seeds, by_seeds, shares=shares) - size
            return above

        ends = np.log(p[unsolved]) - 0.01, np.zeros(len(given[0]))
        p[unsolved] = np.exp(find_root(beyond, ends, args=given).x)
    return p


def t_quantile(degrees: float, alpha: Numbers) -> "np.ndarray":
    """Half of the width of a t interval at level 1 - alpha, in standard errors."""
    from scipy.special import stdtrit

    quantile: np.ndarray = -stdtrit(degrees, alpha / 2)
    return quantile


def least(images: int, alpha: Numbers) -> "np.ndarray":
    """Half of Tango's interval, as a share, if no image differs. At 95 % it is about 4 of all images."""
    from scipy.special import ndtri

    squared = ndtri(alpha / 2) ** 2
    half: np.ndarray = squared / (images + squared)
    return half
