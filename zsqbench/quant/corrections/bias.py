"""Corrections of biases: for the error of rounded weights (HPTQ, DFQ), and DFQ's high-bias absorption.

From HPTQ, arXiv 2109.09113, and its code, MCT; from DFQ, arXiv 1906.04721. Weights are [out, in / groups, kh, kw] of a
convolution or [out, in] of a linear layer. No function changes its arguments.
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

    `input_mean` is the mean of each input channel of the float network, [in] (see `per_input`). Sums run over the
    inputs of an output channel. A place reads a share of them (see `kernel_share`). The result is exact except for zero
    padding, because the mean leaves its zeros out.
    """
    shift = ((quantized - weight) * per_input(input_mean, weight, groups)).flatten(1).sum(1) * kernel_share
    return -shift if bias is None else bias - shift


def kernel_share(layer: nn.Module) -> float:
    """The part of a layer's kernel that a place of its output uses, on average over places.

    It is 1. In a transposed convolution, a place uses one of stride x stride parts, in turn.
    """
    return 1 / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1.0


def absorbed_biases(
    bias: Tensor, next_weight: Tensor, next_bias: Tensor, amounts: Tensor, *, next_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The biases of two layers after the second layer absorbed constant amounts [C] of the first layer's output.

    DFQ's high-bias absorption. The operators between the layers must pass a constant on. The zero padding of the second
    layer does not: along borders, its weights also count the constant. A transposed convolution with a stride does not
    pass a constant on either (see `Pair.uneven`).
    """
    taken = (next_weight * per_input(amounts, next_weight, next_groups)).flatten(1).sum(1)
    return bias - amounts, next_bias + taken
