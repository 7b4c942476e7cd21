"""The closed-form corrections of HPTQ and DFQ: equalization, absorption, shift negative correction, bias and moments.

From HPTQ, arXiv 2109.09113, and its code, MCT; from DFQ, arXiv 1906.04721. Weights are [out, in / groups, kh, kw] of a
convolution or [out, in] of a linear layer; none of the functions changes its arguments.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zsqbench.quant.ranges.histogram import Histogram

_SHIFTS_AT_A_TIME = 256

_LARGEST_FACTOR = 2.0**24
"""Beyond it float32 loses what it is multiplied with."""


class Equalized(NamedTuple):
    """The parameters of two layers after equalization."""

    weight: Tensor
    bias: Tensor | None
    next_weight: Tensor


class ShiftedGrid(NamedTuple):
    """An unsigned grid whose zero is moved up, as the affine grid that it is: x' = (q - zero_point) * scale.

    MCT adds the shift to the activation, quantizes without a sign, subtracts shift * sum(kernel) from the next layer's
    bias and pads it with the shift. Nothing of that changes a value beyond the affine grid, which pads with zero.
    """

    scale: float
    zero_point: int

    @property
    def shift(self) -> float:
        """What MCT adds to the activation."""
        return self.scale * self.zero_point


class Rescaling(NamedTuple):
    """A factor and a summand for each output channel: y * scale + shift."""

    scale: Tensor
    shift: Tensor


def equalization_factors(maxima: Tensor, threshold: Tensor | float) -> Tensor:
    """Factors [C] of at least one that make each channel between two layers fill the activation's threshold.

    `maxima` are the channels' largest absolute values, [C]. HPTQ's k = max(t / max, 1); a channel that is dead, which
    is to say below a 2^24th of the threshold, keeps k = 1.
    """
    factors = (threshold / maxima).clamp(min=1)
    return torch.where(factors <= _LARGEST_FACTOR, factors, torch.ones_like(factors))


def equalize(
    weight: Tensor, bias: Tensor | None, next_weight: Tensor, factors: Tensor, *, next_groups: int = 1
) -> Equalized:
    """Multiply the outputs of a layer by positive factors [C], and divide the inputs of the next layer by them.

    With a positively homogeneous function (ReLU, pooling, padding with zero) between them both compute what they did;
    the bound of a ReLU6 has to rise with the factors. See `per_input` for what the next layer may be.
    """
    return Equalized(
        weight * factors.view(-1, *[1] * (weight.dim() - 1)),
        None if bias is None else bias * factors,
        next_weight / per_input(factors, next_weight, next_groups),
    )


def balancing_factors(weight: Tensor, next_weight: Tensor, *, next_groups: int = 1) -> Tensor:
    """Factors [C] with which both layers' weights have the same range in each channel between them.

    DFQ's 1 / s = sqrt(r2 / r1), where r1 and r2 are the largest absolute weights that make and that read a channel. A
    channel that is dead keeps its factor of one, as a huge one would only blow up the constant that it is: where r1 r2,
    which no factor changes, is below a 2^24th of the largest.
    """
    made, read = weight.abs().flatten(1).amax(1), _read_range(next_weight, len(weight), next_groups)
    products = made.double() * read
    alive = products > products.max() / _LARGEST_FACTOR
    return torch.where(alive, (read / made).sqrt(), torch.ones_like(made))


def dead_channels(weight: Tensor) -> Tensor:
    """Which output channels a layer makes with weights below a 2^24th of its largest, or none: they are constants."""
    ranges = weight.abs().flatten(1).amax(1)
    return ranges <= ranges.max() / _LARGEST_FACTOR


def absorbed_biases(
    bias: Tensor, next_weight: Tensor, next_bias: Tensor, amounts: Tensor, *, next_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The biases of two layers, of which the next one takes over constant amounts [C] of what the first one makes.

    DFQ's high-bias absorption: what comes between the layers has to pass a constant on. The next layer's zero padding
    does not: along borders that reach into it, the weights there count the constant, too.
    """
    taken = (next_weight * per_input(amounts, next_weight, next_groups)).flatten(1).sum(1)
    return bias - amounts, next_bias + taken


def per_input(values: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """Values of the input channels [C], shaped so that they broadcast with the weight that reads these channels.

    The weight belongs to a convolution of any groups (depthwise included), or to a linear layer; where this one has
    n * C inputs, they are n values of each channel, one channel after the other, as flattening makes them.
    """
    inputs = weight.shape[1] * groups
    if inputs % len(values) != 0 or (inputs != len(values) and weight.dim() > 2):  # noqa: PLR2004 - of a linear layer
        raise ValueError(f"a weight {list(weight.shape)} in {groups} groups does not read {len(values)} channels")
    by_group = values.repeat_interleave(inputs // len(values)).view(groups, -1)
    by_output = by_group.repeat_interleave(len(weight) // groups, dim=0)
    return by_output.view(*by_output.shape, *[1] * (weight.dim() - 2))


def corrected_bias(
    bias: Tensor | None, weight: Tensor, quantized: Tensor, input_mean: Tensor, *, groups: int = 1
) -> Tensor:
    """The bias [out] that keeps the mean output of a layer whose weight was quantized: b - sum((Q(W) - W) E[x]).

    `input_mean` is the mean of each input channel of the float network, [in] (see `per_input`); sums run over what a
    channel of the output reads. Exact but for zero padding, whose zeros the mean leaves out.
    """
    shift = ((quantized - weight) * per_input(input_mean, weight, groups)).flatten(1).sum(1)
    return -shift if bias is None else bias - shift


def shifted_grid(minimum: float, threshold: float, bits: int, ratio: float) -> ShiftedGrid | None:
    """The unsigned grid of a threshold, moved up until it holds the minimum; None where that does not pay.

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
    """The grid of least squared error on a histogram, of all shifts of the thresholds t and 2t; None as above.

    It may clip what is most negative. Of equal errors t comes before 2t, and a smaller shift before a larger one.
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


def second_moment_correction(
    mean: Tensor, variance: Tensor, beta: Tensor, gamma: Tensor, *, eps: float = 1e-8
) -> Rescaling:
    """The scale and shift that give a layer's output the mean beta and the deviation |gamma| of its folded batch norm.

    `mean` and `variance` are those of the output of the layer with quantized weights, all of shape [out]; fold the
    result with `W * scale` and `b * scale + shift`. A channel without variance (at most eps), before or after, keeps
    its scale and gets the mean only.
    """
    alive = (variance > eps) & (gamma.square() > eps)
    scale = torch.where(alive, gamma.abs() / variance.clamp(min=eps).sqrt(), torch.ones_like(gamma))
    return Rescaling(scale, beta - scale * mean)


def _read_range(weight: Tensor, channels: int, groups: int) -> Tensor:
    """The largest absolute weight that reads each of the channels: [C]."""
    by_group = weight.abs().reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return by_group.amax((1, 3)).view(channels, -1).amax(1)
