"""Shift negative correction: an unsigned grid for activations that are barely negative.

From HPTQ, arXiv 2109.09113, and its code, MCT.
"""

import math
from typing import NamedTuple

import torch

from zsqbench.quant.ranges.histogram import Histogram

_SHIFTS_AT_A_TIME = 256


class ShiftedGrid(NamedTuple):
    """An unsigned grid with a shifted zero, written as an affine grid: x' = (q - zero_point) * scale.

    MCT adds the shift to the activation, quantizes without a sign, subtracts shift * sum(kernel) from the next layer's
    bias, and pads with the shift. The affine grid, which pads with zero, gives the same values.
    """

    scale: float
    zero_point: int

    @property
    def shift(self) -> float:
        """The shift that MCT adds to the activation."""
        return self.scale * self.zero_point


def shifted_grid(minimum: float, threshold: float, bits: int, ratio: float) -> ShiftedGrid | None:
    """The unsigned grid of a threshold, shifted until it holds the minimum. None: this has no advantage.

    Shift negative correction is for activations that are barely negative: minimum < 0 and |minimum| / threshold <=
    ratio (0.25 in MCT 1, 0.05 in MCT 2). The shift is the smallest point of the grid k t / 2^b that is not below
    |minimum|.
    """
    if not minimum < 0 or -minimum > ratio * threshold:
        return None
    scale = threshold / 2**bits
    zero_point = math.ceil(-minimum / scale)
    return ShiftedGrid(scale, zero_point) if zero_point < 2**bits else None


def best_shifted_grid(histogram: Histogram, threshold: float, bits: int, ratio: float) -> ShiftedGrid | None:
    """The grid with the least squared error on a histogram, among all shifts of the thresholds t and 2t. None as above.

    It may clip the most negative values. For equal errors t comes before 2t, and a smaller shift before a larger shift.
    """
    if shifted_grid(histogram.low, threshold, bits, ratio) is None:
        return None
    best, least = None, math.inf
    for scale in (threshold / 2**bits, 2 * threshold / 2**bits):
        codes = (histogram.left_edges / scale).round()
        for zero_points in torch.split(torch.arange(2**bits, dtype=codes.dtype), _SHIFTS_AT_A_TIME):
            shifts = zero_points[:, None]
            rounded = ((codes + shifts).clamp(0, 2**bits - 1) - shifts) * scale
            errors = (rounded - histogram.left_edges).square() @ histogram.counts
            if errors.min() < least:
                best, least = ShiftedGrid(scale, int(zero_points[errors.argmin()])), float(errors.min())
    return best
