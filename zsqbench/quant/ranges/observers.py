"""Ranges of tensors: min-max, a running min-max over batches, percentiles, and the L_p search, on any grid.

`axis=None` gives one range for the tensor, as scalars. `axis=0` gives one for each channel, as vectors of length C.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zsqbench.quant.grids.affine import (
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
RANGES = 100
"""Ranges that QDrop's search tries."""
SMALLEST_SCALE = 1e-8
"""The exponent p of QDrop's search."""
THRESHOLDS = 10
"""Powers of two that the search tries, from twice the one that covers the tensor downwards."""

# Elements that the search holds at a time: on a CPU what stays in its cache, elsewhere what fills the device.
_CPU_BLOCK = 2**17
_DEVICE_BLOCK = 2**25

# A long row drops candidates by its histogram, before the search reads the elements. Its constants:
_BINS = (2**11, 2**15, 2**18)
_COUNTED = 2**22
"""Elements that are put into bins at a time."""
_LARGEST = 2.0**20
"""Between its inverse and itself, |d|^p and its sums neither vanish nor overflow in float32."""
_ROUNDING = 2.0**-20
"""Bound of what float32 does to a value, its bin and its distance: 16 roundings, relative to the largest value."""
_RELATIVE_ROUNDING = 2.0**-15
"""Bound of what float32 does to the powers and sums of two candidates, relative to their p-th root."""

Range = tuple[Tensor, Tensor]


def include_zero(low: Tensor, high: Tensor) -> Range:
    """The range, widened to hold zero. Zero (padding, ReLU) is then a point of the grid."""
    return low.clamp(max=0), high.clamp(min=0)


def minmax(x: Tensor, axis: int | None = None) -> Range:
    """Smallest and largest value."""
    return _shaped(*_ends(as_rows(x, axis)), axis)


class RunningMinMax:
    """The smallest and largest value of all batches so far. Zero is always inside, as in ZeroQ's buffers."""

    def __init__(self) -> None:
        self.range: Range | None = None

    def update(self, x: Tensor) -> Range:
        """Widen the range by a batch, and return it."""
        low, high = include_zero(*minmax(x))
        if self.range is not None:
            low, high = torch.minimum(low, self.range[0]), torch.maximum(high, self.range[1])
        self.range = low, high
        return self.range


class MovingMinMax:
    """A moving average of smallest and largest values of batches, for activation ranges during training.

    r = m r + (1 - m) x. After t batches the value is r / (1 - m^t), so it is unbiased. IntraQ and HAST divide a value
    that is already divided (`compounding`): a constant 1 becomes 1, 5.26, 17.8, ... 3945 (t = 21), and is 1 again after
    about 200 batches.
    """

    def __init__(self, momentum: float = 0.9, *, compounding: bool = False) -> None:
        self._momentum = momentum
        self._compounding = compounding
        self._kept: Tensor | None = None
        self._batches = 0

    def update(self, x: Tensor) -> Range:
        """Add a batch, and return the range."""
        ends = torch.stack(minmax(x))
        kept = torch.zeros_like(ends) if self._kept is None else self._kept.to(ends)
        kept = self._momentum * kept + (1 - self._momentum) * ends
        self._batches += 1
        corrected = kept / (1 - self._momentum**self._batches)
        self._kept = corrected if self._compounding else kept
        return corrected[0], corrected[1]

    def state(self) -> Tensor:
        """The state for a checkpoint: both averaged ends, and the number of batches, float64 [3]."""
        ends = torch.zeros(2) if self._kept is None else self._kept
        return torch.cat([ends.cpu().double(), torch.tensor([self._batches], dtype=torch.float64)])

    def load(self, state: Tensor) -> Range:
        """Resume from a `state`, and return its range."""
        self._batches = int(state[2])
        self._kept = state[:2].float()
        corrected = self._kept if self._compounding else self._kept / (1 - self._momentum**self._batches)
        return corrected[0], corrected[1]


def percentile(x: Tensor, percent: float, axis: int | None = None) -> Range:
    """The quantiles at 100 - `percent` and `percent`: for `percent` 99.9 the 0.1 % and the 99.9 % quantile.

    Quantiles are values of the tensor itself (the nearest rank). Raises ValueError outside 50 < percent <= 100.
    """
    if not 50 < percent <= 100:  # noqa: PLR2004 - below, low would be above high
        raise ValueError(f"percent is {percent}; expected more than 50 and at most 100")
    rows = as_rows(x, axis)
    rank = max(1, math.ceil(round(percent / 100 * rows.shape[1], 6)))  # 99.9 % of 1000 are 999
    high = rows.kthvalue(rank, dim=1).values
    low = rows.kthvalue(rows.shape[1] + 1 - rank, dim=1).values
    return _shaped(low, high, axis)


def absmax(weight: Tensor, bits: int, axis: int | None = None) -> Affine:
    """The grid of PSAQ-ViT's weights (Li et al., ECCV 2022), as in its code, in the weight's own precision.

    With M the largest |w|, the scale is M / ((2^b - 1) / 2), at least the machine epsilon of float32, and the zero
    point is 2^(b-1). So -M is half a step beyond the last code on both sides, and rounding errors decide its code.
    """
    low, high = _ends(as_rows(weight.detach(), axis))
    largest = torch.maximum(-low, high)
    scale = (largest / (levels(bits) / 2)).clamp_min(torch.finfo(torch.float32).eps)
    scale, zero_point = _shaped(scale, torch.full_like(scale, 2.0 ** (bits - 1)), axis)
    return Affine(scale, zero_point)


def mse80(x: Tensor, bits: int, axis: int | None = None, *, zero: bool = False) -> Range:
    """The range (1 - 0.01 i) * (min, max), i = 0 .. 79, with the least mean |x - Q(x)|^2.4. The first of equals wins.

    BRECQ's `scale_method="mse"`, which DGH uses for weights and activations. BRECQ does not widen a range that lacks
    zero; `zero=True` does. Chunked, so that memory stays bounded, and vectorised over channels and candidates.
    """
    rows = as_rows(x.detach(), axis)
    low, high = _ends(rows)
    if zero:
        low, high = include_zero(low, high)
    ratios = _ratios(rows)
    lows, highs = ratios * low, ratios * high  # [80, C]
    best = _least(rows, affine_parameters(lows, highs, bits), bits, axis)
    return _shaped(lows.gather(0, best)[0], highs.gather(0, best)[0], axis)


def lp_search(x: Tensor, bits: int, axis: int | None = None, *, grid: Grid = "affine", signed: bool = True) -> Affine:
    """The parameters of the grid of this kind with the least mean |x - Q(x)|^2.4. The first of equals wins.

    Affine: `mse80`, with zero. Symmetric: the thresholds (1 - 0.01 i) t, i = 0 .. 79, where t covers the tensor. Power
    of two: 2 t, t, t / 2, ..., ten of them but none below 2^-16, where t is the smallest that covers it.
    """
    if grid == "affine":
        return affine_parameters(*mse80(x, bits, axis, zero=True), bits)
    rows = as_rows(x.detach(), axis)
    threshold = covering_threshold(*_ends(rows), bits, signed)
    power = grid == "power_of_two"
    thresholds = halved(power_of_two(threshold), THRESHOLDS) if power else _ratios(rows) * threshold
    scale, zero_point = symmetric_parameters(thresholds, bits, signed)
    return _best(rows, Affine(scale, zero_point), bits, axis)


def threshold_search(x: Tensor, bits: int, axis: int | None = None) -> Affine:
    """The symmetric, signed grid of the thresholds r t, r = 1, 0.99, ..., 0.01, with the least mean |x - Q(x)|^2.4.

    t covers the tensor. `range_search` and `shrink_search` become this search for weights with the zero point in the
    middle.
    """
    rows = as_rows(x.detach(), axis)
    ratios = torch.arange(RANGES, 0, -1, dtype=rows.dtype, device=rows.device)[:, None] / RANGES
    thresholds = ratios * covering_threshold(*_ends(rows), bits, signed=True)
    return _best(rows, symmetric_parameters(thresholds, bits, signed=True), bits, axis)


def shrink_search(
    x: Tensor, bits: int, axis: int | None = None, *, symmetric: bool = False, signed: bool = True
) -> Affine:
    """The grid of the range r * (min, max), r = 1, 0.99, ..., 0.01, with the least mean |x - Q(x)|^2.4, as in GENIE.

    A symmetric range is (-m, m), or (0, m) without sign. m is the largest absolute value. Ranges need not hold zero.
    The zero point of a range without zero is not a code.
    """
    rows = as_rows(x.detach(), axis)
    low, high = _ends(rows)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high if signed else torch.zeros_like(high)
    ratios = torch.arange(1.0, 0.0, -SHRINK_STEP, dtype=rows.dtype, device=rows.device)[:, None]
    return _best(rows, affine_parameters(ratios * low, ratios * high, bits), bits, axis)


def range_search(x: Tensor, bits: int, axis: int | None = None) -> Affine:
    """The grid with the least mean |x - Q(x)|^2.4 of 100 thresholds, or of 100 ranges and all zero points: QDrop's.

    Thresholds (0, t), or (-t, 0), are for tensors whose values all have one sign. Other tensors take ranges of the
    lengths (max - min) i / 100 with zero at each of their points. QDrop's `MSEObserver`.
    """
    rows = as_rows(x.detach(), axis)
    low, high = _ends(rows)
    parts = torch.arange(1, RANGES + 1, dtype=rows.dtype, device=rows.device)[:, None]
    top = float(levels(bits))
    if rows.min() >= 0 or rows.max() <= 0:
        scale = torch.maximum(-low, high) / RANGES * parts / top
        zero_point = torch.full_like(scale, 0.0 if rows.min() >= 0 else top)
    else:
        lengths = (high.clamp(min=0) - low.clamp(max=0)) / RANGES * parts
        points = torch.arange(2**bits, dtype=rows.dtype, device=rows.device)
        scale = (lengths / top).repeat_interleave(len(points), 0)
        zero_point = points.repeat(RANGES)[:, None].expand_as(scale)
    return _best(rows, Affine(scale.clamp(min=SMALLEST_SCALE), zero_point), bits, axis)


def _best(rows: Tensor, candidates: Affine, bits: int, axis: int | None) -> Affine:
    best = _least(rows, candidates, bits, axis)
    return Affine(*_shaped(candidates.scale.gather(0, best)[0], candidates.zero_point.gather(0, best)[0], axis))


def _ends(rows: Tensor) -> Range:
    return rows.amin(1), rows.amax(1)  # aminmax takes several times as long on one long row


def _ratios(rows: Tensor) -> Tensor:
    # 1 - 0.01 i in double precision and then rounded, like Python's floats times a tensor
    return torch.tensor([1.0 - SHRINK_STEP * i for i in range(CANDIDATES)], dtype=rows.dtype, device=rows.device)[
        :, None
    ]


def _least(rows: Tensor, candidates: Affine, bits: int, axis: int | None) -> Tensor:
    """Index [1, C] of the first candidate [K, C] with the least error."""
    if axis is None:
        # A tensor with zeros has zero on every candidate's grid, and ReLU makes half of them.
        rows = without_zeros(rows)[None]
        # Shorter rows share a block between candidates, and an error may round differently if it is summed in another
        # block.
        if rows.shape[1] >= _block(rows) and rows.dtype == torch.float32:
            kept = _contenders(rows[0], candidates, bits)
            if len(kept) == 1:
                return kept[None]
            return kept[_lp_errors(rows, _chosen(candidates, kept), bits).argmin(0, keepdim=True)]
    return _lp_errors(rows, candidates, bits).argmin(0, keepdim=True)


def _contenders(row: Tensor, candidates: Affine, bits: int) -> Tensor:
    """Indices, in order, of the candidates [K, 1] that may have the least error on a row [n], by its histogram.

    |x - Q(x)| is the distance from a set of points. So the distances of a value and of the centre of its bin differ by
    at most half a bin. By the triangle inequality the same holds for the power means (the sum / n)^(1/p) of all
    distances. A candidate whose mean over the histogram is more than a bin above the least mean cannot have the least
    error.
    """
    kept = torch.arange(len(candidates.scale), device=row.device)
    low, high = row.min().item(), row.max().item()
    largest = max(-low, high)
    if not (low < high and 1 / _LARGEST < largest < _LARGEST):  # nor where there is NaN
        return kept
    finest = torch.zeros(_BINS[-1], dtype=torch.long, device=row.device)
    for part in torch.split(row, _COUNTED):
        bins = (part - low).mul_(len(finest) / (high - low)).int().clamp_(max=len(finest) - 1)
        finest += torch.bincount(bins, minlength=len(finest))
    for count in _BINS:
        counts, width = finest.view(count, -1).sum(1).to(row), (high - low) / count
        centres = (low + width * (torch.arange(count, dtype=torch.float64, device=row.device) + 0.5)).to(row)
        grids = zip(*_chosen(candidates, kept), strict=True)
        errors = torch.stack([_powers(centres, *grid, bits).mul_(counts).sum(dtype=torch.float64) for grid in grids])
        means = (errors / len(row)) ** (1 / SEARCH_POWER)
        kept = kept[means <= means.min() * (1 + _RELATIVE_ROUNDING) + width + 2 * _ROUNDING * largest]
    return kept


def _chosen(candidates: Affine, indices: Tensor) -> Affine:
    return Affine(candidates.scale[indices], candidates.zero_point[indices])


def _lp_errors(rows: Tensor, candidates: Affine, bits: int) -> Tensor:
    """Sum of |x - Q(x)|^p of each row [C, n] for each of its grids [K, C], as float64 [K, C]."""
    scale, zero_point = (value[:, :, None] for value in candidates)
    errors = torch.zeros(candidates.scale.shape, dtype=torch.float64, device=rows.device)
    for part, chosen in blocks(rows, len(errors)):
        errors[chosen] += _powers(part, scale[chosen], zero_point[chosen], bits).sum(2)
    return errors


def _powers(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """|x - Q(x)|^p."""
    error = x / scale
    # In place everywhere: otherwise a search spends its time on temporaries, not on arithmetic.
    error.round_().add_(zero_point).clamp_(0, levels(bits)).sub_(zero_point)
    error.mul_(scale).sub_(x).abs_()
    # |d|^p as 2^(p log2 |d|): pow takes two thirds of the whole search on a CPU, and this a third of pow
    return error.log2_().mul_(SEARCH_POWER).exp2_()


def _block(rows: Tensor) -> int:
    return _CPU_BLOCK if rows.device.type == "cpu" else _DEVICE_BLOCK


def blocks(rows: Tensor, candidates: int) -> Iterator[tuple[Tensor, slice]]:
    """Columns of rows [C, n], and the candidates that a search tries together on them."""
    block = _block(rows)
    columns = max(1, block // len(rows))
    together = max(1, block // (len(rows) * min(columns, max(1, rows.shape[1]))))
    for part in torch.split(rows, columns, dim=1):
        for start in range(0, candidates, together):
            yield part, slice(start, start + together)


def without_zeros(x: Tensor) -> Tensor:
    """The elements that are not zero [n]."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x[x != 0]
    values = x.detach().flatten().numpy()
    return torch.from_numpy(values.compress(values != 0))  # takes a sixth of the time that indexing with a mask takes


def as_rows(x: Tensor, axis: int | None) -> Tensor:
    """The tensor as one row [1, n], or a row for each channel along the axis [C, n]."""
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _shaped(low: Tensor, high: Tensor, axis: int | None) -> Range:
    return (low[0], high[0]) if axis is None else (low, high)
