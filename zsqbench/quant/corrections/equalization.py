"""Cross-layer equalization: rescaling the channels that two layers share, as HPTQ and DFQ do.

From HPTQ, arXiv 2109.09113, and its code, MCT; from DFQ, arXiv 1906.04721. Weights are [out, in / groups, kh, kw] of a
convolution or [out, in] of a linear layer. Except `rescale`, no function changes its arguments.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.graph.pairs import Pair

_LARGEST_FACTOR = 2.0**24
"""The largest factor. Larger factors exceed the precision of float32."""


class Equalized(NamedTuple):
    """The parameters of two layers after equalization."""

    weight: Tensor
    bias: Tensor | None
    next_weight: Tensor


def equalization_factors(maxima: Tensor, threshold: Tensor | float) -> Tensor:
    """Factors [C] of at least one with which each channel between two layers fills the activation's threshold.

    `maxima` are the channels' largest absolute values, [C]. HPTQ's k = max(t / max, 1). A dead channel (below a 2^24th
    of the threshold) keeps k = 1.
    """
    factors = (threshold / maxima).clamp(min=1)
    return torch.where(factors <= _LARGEST_FACTOR, factors, torch.ones_like(factors))


def equalize(
    weight: Tensor, bias: Tensor | None, next_weight: Tensor, factors: Tensor, *, next_groups: int = 1
) -> Equalized:
    """Multiply the outputs of a layer by positive factors [C], and divide the inputs of the next layer by them.

    With a positively homogeneous function between them (ReLU, pooling, padding with zero) the result does not change.
    The bound of a ReLU6 must rise with the factors. See `per_input` for the possible next layers.
    """
    return Equalized(
        weight * factors.view(-1, *[1] * (weight.dim() - 1)),
        None if bias is None else bias * factors,
        next_weight / per_input(factors, next_weight, next_groups),
    )


def balancing_factors(weight: Tensor, next_weight: Tensor, *, next_groups: int = 1) -> Tensor:
    """Factors [C] with which the weights of both layers have the same range in each channel between them.

    DFQ's 1 / s = sqrt(r2 / r1). r1 and r2 are the largest absolute weights that make and that read a channel. A channel
    is dead if r1 r2, which no factor changes, is below a 2^24th of the largest. It keeps a factor of one, because a
    huge factor would only enlarge its constant.
    """
    made, read = weight.abs().flatten(1).amax(1), _read_range(next_weight, len(weight), next_groups)
    products = made.double() * read
    alive = products > products.max() / _LARGEST_FACTOR
    return torch.where(alive, (read / made).sqrt(), torch.ones_like(made))


def dead_channels(weight: Tensor) -> Tensor:
    """The output channels whose weights are at most a 2^24th of the layer's largest. They are constants."""
    ranges = weight.abs().flatten(1).amax(1)
    return ranges <= ranges.max() / _LARGEST_FACTOR


def per_input(values: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """Values of the input channels [C], in a shape that broadcasts with the weight that reads these channels.

    The weight belongs to a convolution with any groups (also depthwise), or to a linear layer. If a linear layer has
    n * C inputs, they are n values of each channel, channel by channel, as after flattening.
    """
    inputs = weight.shape[1] * groups
    if inputs % len(values) != 0 or (inputs != len(values) and weight.dim() > 2):  # noqa: PLR2004 - of a linear layer
        raise ValueError(f"a weight {list(weight.shape)} in {groups} groups does not read {len(values)} channels")
    by_group = values.repeat_interleave(inputs // len(values)).view(groups, -1)
    by_output = by_group.repeat_interleave(len(weight) // groups, dim=0)
    return by_output.view(*by_output.shape, *[1] * (weight.dim() - 2))


@torch.no_grad()
def rescale(student: fx.GraphModule, pair: Pair, factors: Tensor) -> None:
    """Multiply the shared channels of a pair of layers by positive factors [C], in place. A bound between them stays.

    The weights become separate parameters, because other layers may tie them.
    """
    first, second = cast("tuple[Any, Any]", tuple(map(student.get_submodule, (pair.first, pair.second))))
    groups = getattr(second, "groups", 1)
    result = equalize(first.weight, first.bias, second.weight, factors, next_groups=groups)
    first.weight = nn.Parameter(result.weight, requires_grad=False)
    second.weight = nn.Parameter(result.next_weight, requires_grad=False)
    if result.bias is not None:
        first.bias = nn.Parameter(result.bias, requires_grad=False)


def _read_range(weight: Tensor, channels: int, groups: int) -> Tensor:
    """The largest absolute weight that reads each of the channels: [C]."""
    by_group = weight.abs().reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return by_group.amax((1, 3)).view(channels, -1).amax(1)
