"""Setup of torch.compile: the number of compiled versions, and derivatives of clipping functions.

On a CPU, its kernels store truth values one by one. ReLU's derivative has one for each value of an activation. Storing
them took longer than a convolution of 16 channels. So here derivatives of clipping functions are numbers.
"""

import torch
from torch import Tensor

from zsqbench.compat import decompose, keep_custom_graphs, recompile_at_most

COMPILED_AT_MOST = 64
"""Largest number of versions of a function, for other networks or batch sizes, that a worker compiles."""


def set_up(device: torch.device) -> None:
    """Set up torch.compile in this process, for all later compilations."""
    recompile_at_most(COMPILED_AT_MOST)  # one worker may have many networks
    keep_custom_graphs()  # most compiled functions here contain an `autograd.Function`
    if device.type == "cpu":
        _clip_with_numbers()


def _clip_with_numbers() -> None:
    operators = torch.ops.aten
    decompose(
        {operators.threshold_backward.default: threshold_backward, operators.hardtanh_backward.default: clip_backward}
    )


def threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """ReLU's gradient: the gradient where x is above the threshold, else zero."""
    return gradient * (x - threshold if threshold else x).sign().clamp_min(0)


def clip_backward(gradient: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """ReLU6's gradient: the gradient where x is between the two bounds, else zero."""
    return gradient * ((x - low).sign().clamp_min(0) * (high - x).sign().clamp_min(0))
