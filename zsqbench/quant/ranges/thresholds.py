"""The search for the threshold t of a symmetric or power-of-two grid, as in HPTQ and its code, MCT.

The grid reaches from -t to t - t / 2^(b-1) if it is signed, and from 0 to t - t / 2^b if it is not (see
`symmetric_parameters`). If two thresholds have the same error, the first candidate is taken.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zsqbench.quant.grids.affine import (
    MIN_THRESHOLD,
    covering_threshold,
    fake_quantize,
    halved,
    power_of_two,
    symmetric_parameters,
)
from zsqbench.quant.ranges.histogram import BINS, Histogram
from zsqbench.quant.ranges.observers import as_rows, blocks

Distance = Literal["mse", "mae", "lp"]
"""Mean of |x - Q(x)|^p, where p is 2, 1, or given."""

WeightError = Literal["mse", "mae", "lp", "no_clipping"]
"""The error that a weight's threshold minimizes. `no_clipping`: it is not searched, but covers all values."""

ActivationError = Literal["mse", "mae", "lp", "kl", "no_clipping"]
"""The error for an activation. Its distribution can also be compared."""

WEIGHT_CANDIDATES = 10
ACTIVATION_CANDIDATES = 20

# MCT's search for symmetric thresholds; the factors bound the candidates relative to the threshold before.
_INTERVALS = 30
_FACTORS = (0.7, 1.2)
_NARROWING = (1.02, 0.98)
_NARROWEST = (0.97, 1.03)
_TOLERANCE = 1e-11
_ITERATIONS, _NARROWED_EACH = 15, 3  # per channel
_TENSOR_ITERATIONS, _TENSOR_NARROWED_EACH = 40, 5


class Threshold(NamedTuple):
    """The grid of an activation: its threshold, a scalar in float32, and true if it reaches below zero."""

    threshold: Tensor
    signed: bool


def power_of_two_weight_thresholds(
    weight: Tensor,
    bits: int,
    axis: int | None = None,
    *,
    error: WeightError = "mse",
    p: float = 2.0,
    candidates: int = WEIGHT_CANDIDATES,
) -> Tensor:
    """The best of 2 t0, t0, t0 / 2, ... for the tensor (a scalar) or each channel along an axis (a vector).

    t0 is the smallest power of two, from 2^-16, whose signed grid holds all values. "no_clipping" takes t0. HPTQ, arXiv
    2109.09113. There is no "kl", because a channel has too few weights for a comparison of histograms.
    """
    rows = as_rows(weight.detach(), axis)
    start = power_of_two(_covering(rows, bits))
    if error != "no_clipping":
        start = _best(rows, halved(start, candidates), bits, signed=True, error=error, p=p)[0]
    return _shaped(start.to(weight.dtype), axis)


def symmetric_weight_thresholds(
    weight: Tensor,
    bits: int,
    axis: int | None = None,
    *,
    error: WeightError = "mse",
    p: float = 2.0,
) -> Tensor:
    """The best threshold that need not be a power of two, for the tensor (a scalar) or each channel (a vector).

    "no_clipping" is the smallest whose signed grid holds all values, at least 2^-16. From there the search is that of
    MCT 2 (15 rounds of 30 candidates per channel, 40 rounds per tensor). "kl" is refused as for powers of two.
    """
    rows = as_rows(weight.detach(), axis)
    start = _covering(rows, bits).clamp(min=MIN_THRESHOLD)
    if error != "no_clipping":
        start = _refined(rows, start, bits, error=error, p=p, per_channel=axis is not None)
    return _shaped(start.to(weight.dtype), axis)


def activation_threshold(
    histogram: Histogram,
    bits: int,
    *,
    signed: bool | None = None,
    error: ActivationError = "mse",
    p: float = 2.0,
    candidates: int = ACTIVATION_CANDIDATES,
) -> Threshold:
    """The best of 2 t0, t0, t0 / 2, ... for an activation, whose values are the left edges of a histogram's bins.

    t0 is the smallest power of two, from 2^-16, that is not below any edge. "no_clipping" takes t0, as MCT does for
    bounded activations (ReLU6, sigmoid, softmax). Unless given, the grid is signed if a bin that is not empty starts
    below zero. "kl" compares distributions as in Migacz, 8-bit Inference with TensorRT, 2017.
    """
    signed = histogram.is_signed if signed is None else signed
    start = _activation_start(histogram)
    if error == "no_clipping":
        return Threshold(start.float(), signed)
    thresholds = halved(start, candidates)
    if error == "kl":
        errors = torch.stack([_divergence(histogram, float(t), bits, signed=signed) for t in thresholds])
    else:
        edges = histogram.left_edges
        errors = _deviation(edges - _rounded(edges, thresholds[:, None], bits, signed=signed), error, p)
        errors = errors @ histogram.counts
    return Threshold(thresholds[errors.argmin()].float(), signed)


class ExactThresholdSearch:
    """The search of `activation_threshold` over the values themselves, in a second pass over the data.

    It evaluates all candidates on each value, so the pass takes as long as several forward passes.
    """

    def __init__(
        self,
        histogram: Histogram,
        bits: int,
        *,
        signed: bool | None = None,
        error: Distance = "mse",
        p: float = 2.0,
        candidates: int = ACTIVATION_CANDIDATES,
    ) -> None:
        self.signed = histogram.is_signed if signed is None else signed
        self.bits, self.error, self.p = bits, error, p
        self.thresholds = halved(_activation_start(histogram), candidates)
        self.errors = torch.zeros_like(self.thresholds)
        """Sum of |x - Q(x)|^p over all values so far, for each candidate, float64."""

    def update(self, x: Tensor) -> None:
        """Add the errors of a batch, of any shape and device."""
        values = x.detach()[x != 0]  # zero is on every grid, and ReLU makes half of all values zero
        values = values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
        thresholds = self.thresholds.to(values)[:, None]
        errors = _errors(values[None], thresholds, self.bits, signed=self.signed, error=self.error, p=self.p)
        self.errors += errors[:, 0].cpu()

    def best(self) -> Threshold:
        """The candidate with the least error."""
        return Threshold(self.thresholds[self.errors.argmin()].float(), self.signed)


def _covering(rows: Tensor, bits: int) -> Tensor:
    low, high = torch.aminmax(rows, dim=1)
    if not (low.isfinite().all() and high.isfinite().all()):
        raise ValueError("a threshold needs finite weights, but some are NaN or infinite")
    return covering_threshold(low.double(), high.double(), bits, signed=True)


def _activation_start(histogram: Histogram) -> Tensor:
    return power_of_two(histogram.edges.abs().max())


def _refined(rows: Tensor, start: Tensor, bits: int, *, error: Distance, p: float, per_channel: bool) -> Tensor:
    """MCT's search: each round spans candidates around the best of the round before, even if it is not better."""
    rounds, narrowed_each = (
        (_ITERATIONS, _NARROWED_EACH) if per_channel else (_TENSOR_ITERATIONS, _TENSOR_NARROWED_EACH)
    )
    lower, upper = _FACTORS
    threshold, least = _best(rows, start[None], bits, signed=True, error=error, p=p)
    best = threshold
    positions = torch.arange(_INTERVALS, dtype=start.dtype, device=start.device)[:, None]
    for i in range(rounds):
        step = (threshold * upper - threshold * lower) / (_INTERVALS - 1)
        threshold, errors = _best(rows, threshold * lower + positions * step, bits, signed=True, error=error, p=p)
        gain = ((least - errors) / rows.shape[1]).mean()
        best, least = torch.where(errors < least, threshold, best), torch.minimum(errors, least)
        if 0 < gain < _TOLERANCE:
            break
        if i % narrowed_each == 0:
            lower, upper = min(lower * _NARROWING[0], _NARROWEST[0]), max(upper * _NARROWING[1], _NARROWEST[1])
    return best.clamp(min=MIN_THRESHOLD)


def _best(
    rows: Tensor, thresholds: Tensor, bits: int, *, signed: bool, error: Distance, p: float
) -> tuple[Tensor, Tensor]:
    """The first threshold [C] of the candidates [K, C] with the least error, and this error [C]."""
    errors = _errors(rows, thresholds.to(rows), bits, signed=signed, error=error, p=p)
    least = errors.argmin(0, keepdim=True)
    return thresholds.gather(0, least)[0], errors.gather(0, least)[0]


def _errors(rows: Tensor, thresholds: Tensor, bits: int, *, signed: bool, error: Distance, p: float) -> Tensor:
    """Sum of |x - Q(x)|^p of each row [C, n] for each of its thresholds [K, C], as float64 [K, C]."""
    errors = torch.zeros(thresholds.shape, dtype=torch.float64, device=rows.device)
    for part, chosen in blocks(rows, len(thresholds)):
        deviation = _rounded(part, thresholds[chosen][:, :, None], bits, signed=signed).sub_(part)
        errors[chosen] += _deviation(deviation, error, p).sum(2, dtype=torch.float64)
    return errors


def _rounded(x: Tensor, threshold: Tensor, bits: int, *, signed: bool) -> Tensor:
    """X on the grid of a threshold. Both broadcast."""
    return fake_quantize(x, *symmetric_parameters(threshold, bits, signed), bits)


def _deviation(difference: Tensor, error: Distance, p: float) -> Tensor:
    """|d|^p, in place."""
    if error == "mse":
        return difference.square_()
    if error == "mae":
        return difference.abs_()
    if error == "lp":
        return difference.abs_().pow_(p)
    raise ValueError(f"the error {error!r} compares distributions, not values; expected mse, mae or lp")


def _divergence(histogram: Histogram, threshold: float, bits: int, *, signed: bool) -> Tensor:
    """KL divergence of the histogram, clipped to the grid's range, from its mass spread evenly within each level."""
    left = histogram.left_edges
    inside = (left >= (-threshold if signed else 0.0)) & (left < threshold)
    filled = inside & (histogram.counts > 0)
    # A grid finer than the bins distinguishes all bins, even if it clips much. TensorRT also starts at one bin per
    # level.
    if inside.sum() < min(2**bits, BINS) or not filled.any():
        return torch.tensor(float("inf"), dtype=torch.float64)
    edges, counts = left[filled], histogram.counts[filled]
    levels = _rounded(edges, torch.tensor(threshold, dtype=edges.dtype), bits, signed=signed)
    level = torch.unique(levels, return_inverse=True)[1]
    spread = (torch.bincount(level, counts) / torch.bincount(level))[level]
    clipped = counts.clone()
    clipped[0] += histogram.counts[left < edges[0]].sum()
    clipped[-1] += histogram.counts[left > edges[-1]].sum()
    clipped, spread = clipped / clipped.sum(), spread / spread.sum()
    return (clipped * (clipped / spread).log()).sum()


def _shaped(values: Tensor, axis: int | None) -> Tensor:
    return values[0] if axis is None else values
