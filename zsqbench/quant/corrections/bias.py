"""Corrections of biases: for the error that rounding weights makes (HPTQ, DFQ), and DFQ's high-bias absorption.

From HPTQ, arXiv 2109.09113, and its code, MCT; from DFQ, arXiv 1906.04721. Weights are [out, in / groups, kh, kw] of a
convolution or [out, in] of a linear layer; none of the functions changes its arguments.
"""

import math

from torch import Tensor, nn

from zsqbench.quant.corrections.equalization import per_input


def corrected_bias(
    bias: Tensor | None,
    weight: Tensor,
    quantized: Tensor,
    input_mean: Tensor,
    *,
    groups: int = 1,
    kernel_share: float = 1.0,
) -> Tensor:
    """The bias [out] that keeps the mean output of a layer whose weight was quantized: b - sum((Q(W) - W) E[x]).

    `input_mean` is the mean of each input channel of the float network, [in] (see `per_input`); sums run over what a
    channel of the output reads, of which a place reads a share (see `kernel_share`). Exact but for zero padding, whose
    zeros the mean leaves out.
    """
    shift = ((quantized - weight) * per_input(input_mean, weight, groups)).flatten(1).sum(1) * kernel_share
    return -shift if bias is None else bias - shift


def kernel_share(layer: nn.Module) -> float:
    """Which part of a layer's kernel a place of its output reads, on average over places.

    All of it, but in a transposed convolution one of stride x stride parts, in turn.
    """
    return 1 / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1.0


def absorbed_biases(
    bias: Tensor, next_weight: Tensor, next_bias: Tensor, amounts: Tensor, *, next_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The biases of two layers, of which the next one takes over constant amounts [C] of what the first one makes.

    DFQ's high-bias absorption: what comes between the layers has to pass a constant on. The next layer's zero padding
    does not: along borders that reach into it, the weights there count the constant, too. Nor does a transposed
    convolution with a stride (see `Pair.uneven`).
    """
    taken = (next_weight * per_input(amounts, next_weight, next_groups)).flatten(1).sum(1)
    return bias - amounts, next_bias + taken
