"""Ranges of tensors: min-max, a running min-max over batches, percentiles, and the L_p search, on any grid.

`axis=None` gives one range for the tensor, as scalars; `axis=0` one for each channel, as vectors of length C.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zsqbench.quant.affine import (
    Affine,
    affine_parameters,
    covering_threshold,
    halved,
    levels,
    power_of_two,
    symmetric_parameters,
)
from zsqbench.scheme import Grid

CANDIDATES = 80
SHRINK_STEP = 0.01
SEARCH_POWER = 2.4
THRESHOLDS = 10
"""Powers of two that the search tries, from twice the one that covers the tensor downwards."""

# Elements that the search holds at a time: on a CPU what stays in its cache, elsewhere what fills the device.
_CPU_BLOCK = 2**17
_DEVICE_BLOCK = 2**25

Range = tuple[Tensor, Tensor]


def include_zero(low: Tensor, high: Tensor) -> Range:
    """The range, widened to hold zero, so that zero (padding, ReLU) is a point of the grid."""
    return low.clamp(max=0), high.clamp(min=0)


def minmax(x: Tensor, axis: int | None = None) -> Range:
    """Smallest and largest value."""
    low, high = torch.aminmax(as_rows(x, axis), dim=1)
    return _shaped(low, high, axis)


class RunningMinMax:
    """The smallest and largest value of all batches so far; zero is always inside, as in ZeroQ's buffers."""

    def __init__(self) -> None:
        self.range: Range | None = None

    def update(self, x: Tensor) -> Range:
        """Widen the range by a batch, and return it."""
        low, high = include_zero(*minmax(x))
        if self.range is not None:
            low, high = torch.minimum(low, self.range[0]), torch.maximum(high, self.range[1])
        self.range = low, high
        return self.range


def percentile(x: Tensor, percent: float, axis: int | None = None) -> Range:
    """The values that `percent` of all are above, and below: of `percent` 99.9 the 0.1 % and the 99.9 % quantile.

    Quantiles are values of the tensor itself (the nearest rank). Raises ValueError outside 50 < percent <= 100.
    """
    if not 50 < percent <= 100:  # noqa: PLR2004 - below, low would be above high
        raise ValueError(f"percent is {percent}; expected more than 50 and at most 100")
    rows = as_rows(x, axis)
    rank = max(1, math.ceil(round(percent / 100 * rows.shape[1], 6)))  # 99.9 % of 1000 are 999
    high = rows.kthvalue(rank, dim=1).values
    low = rows.kthvalue(rows.shape[1] + 1 - rank, dim=1).values
    return _shaped(low, high, axis)


def mse80(x: Tensor, bits: int, axis: int | None = None, *, zero: bool = False) -> Range:
    """The range (1 - 0.01 i) * (min, max), i = 0 .. 79, with the least mean |x - Q(x)|^2.4; the first of equals.

    BRECQ's `scale_method="mse"`, which DGH uses for weights and activations. BRECQ does not widen a range that lacks
    zero; `zero=True` does. Chunked, so that memory stays bounded, and vectorised over channels and candidates.
    """
    rows = as_rows(x.detach(), axis)
    low, high = torch.aminmax(rows, dim=1)
    if zero:
        low, high = include_zero(low, high)
    ratios = _ratios(rows)
    lows, highs = ratios * low, ratios * high  # [80, C]
    best = _least(rows, affine_parameters(lows, highs, bits), bits, axis)
    return _shaped(lows.gather(0, best)[0], highs.gather(0, best)[0], axis)


def lp_search(x: Tensor, bits: int, axis: int | None = None, *, grid: Grid = "affine", signed: bool = True) -> Affine:
    """The parameters of the grid of this kind with the least mean |x - Q(x)|^2.4; the first of equals.

    Affine: `mse80`, with zero. Symmetric: the thresholds (1 - 0.01 i) t, i = 0 .. 79, where t covers the tensor. Power
    of two: 2 t, t, t / 2, ..., ten of them but none below 2^-16, where t is the smallest that covers it.
    """
    if grid == "affine":
        return affine_parameters(*mse80(x, bits, axis, zero=True), bits)
    rows = as_rows(x.detach(), axis)
    threshold = covering_threshold(*torch.aminmax(rows, dim=1), bits, signed)
    power = grid == "power_of_two"
    thresholds = halved(power_of_two(threshold), THRESHOLDS) if power else _ratios(rows) * threshold
    scale, zero_point = symmetric_parameters(thresholds, bits, signed)
    best = _least(rows, Affine(scale, zero_point), bits, axis)
    return Affine(*_shaped(scale.gather(0, best)[0], zero_point.gather(0, best)[0], axis))


def _ratios(rows: Tensor) -> Tensor:
    # 1 - 0.01 i in double precision and then rounded, as Python's floats times a tensor do
    return torch.tensor([1.0 - SHRINK_STEP * i for i in range(CANDIDATES)], dtype=rows.dtype, device=rows.device)[
        :, None
    ]


def _least(rows: Tensor, candidates: Affine, bits: int, axis: int | None) -> Tensor:
    """Index [1, C] of the first candidate [K, C] with the least error."""
    if axis is None:
        rows = rows[rows != 0][None]  # a tensor with zeros has zero on every candidate's grid; ReLU makes half of them
    return _lp_errors(rows, candidates, bits).argmin(0, keepdim=True)


def _lp_errors(rows: Tensor, candidates: Affine, bits: int) -> Tensor:
    """Sum of |x - Q(x)|^p of each row [C, n] for each of its grids [K, C], as float64 [K, C]."""
    scale, zero_point = (value[:, :, None] for value in candidates)
    errors = torch.zeros(candidates.scale.shape, dtype=torch.float64, device=rows.device)
    for part, chosen in blocks(rows, len(errors)):
        error = part / scale[chosen]
        # In place throughout: temporaries, not arithmetic, are what this loop would spend its time on.
        error.round_().add_(zero_point[chosen]).clamp_(0, levels(bits)).sub_(zero_point[chosen])
        error.mul_(scale[chosen]).sub_(part).abs_()
        # |d|^p as 2^(p log2 |d|): pow takes two thirds of the whole search on a CPU, and this a third of pow
        errors[chosen] += error.log2_().mul_(SEARCH_POWER).exp2_().sum(2)
    return errors


def blocks(rows: Tensor, candidates: int) -> Iterator[tuple[Tensor, slice]]:
    """Columns of rows [C, n], and the candidates that a search tries on them together."""
    block = _CPU_BLOCK if rows.device.type == "cpu" else _DEVICE_BLOCK
    columns = max(1, block // len(rows))
    together = max(1, block // (len(rows) * min(columns, max(1, rows.shape[1]))))
    for part in torch.split(rows, columns, dim=1):
        for start in range(0, candidates, together):
            yield part, slice(start, start + together)


def as_rows(x: Tensor, axis: int | None) -> Tensor:
    """The tensor as one row [1, n], or a row for each channel along the axis [C, n]."""
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _shaped(low: Tensor, high: Tensor, axis: int | None) -> Range:
    return (low[0], high[0]) if axis is None else (low, high)
