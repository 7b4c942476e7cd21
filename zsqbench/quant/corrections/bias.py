"""Corrections of biases: for the error that rounding weights makes (HPTQ, DFQ), and DFQ's high-bias absorption.

From HPTQ, arXiv 2109.09113, and its code, MCT; from DFQ, arXiv 1906.04721. Weights are [out, in / groups, kh, kw] of a
convolution or [out, in] of a linear layer; none of the functions changes its arguments.
"""

from torch import Tensor

from zsqbench.quant.corrections.equalization import per_input


def corrected_bias(
    bias: Tensor | None, weight: Tensor, quantized: Tensor, input_mean: Tensor, *, groups: int = 1
) -> Tensor:
    """The bias [out] that keeps the mean output of a layer whose weight was quantized: b - sum((Q(W) - W) E[x]).

    `input_mean` is the mean of each input channel of the float network, [in] (see `per_input`); sums run over what a
    channel of the output reads. Exact but for zero padding, whose zeros the mean leaves out.
    """
    shift = ((quantized - weight) * per_input(input_mean, weight, groups)).flatten(1).sum(1)
    return -shift if bias is None else bias - shift


def absorbed_biases(
    bias: Tensor, next_weight: Tensor, next_bias: Tensor, amounts: Tensor, *, next_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The biases of two layers, of which the next one takes over constant amounts [C] of what the first one makes.

    DFQ's high-bias absorption: what comes between the layers has to pass a constant on. The next layer's zero padding
    does not: along borders that reach into it, the weights there count the constant, too.
    """
    taken = (next_weight * per_input(amounts, next_weight, next_groups)).flatten(1).sum(1)
    return bias - amounts, next_bias + taken
