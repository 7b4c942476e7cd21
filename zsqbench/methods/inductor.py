"""torch.compile is set up here: what it keeps, and how it differentiates what clips.

On a CPU, its kernels store truth values one by one. ReLU's derivative is one for each value of an activation, and
storing them took longer than a convolution of 16 channels. So derivatives of what clips are numbers here.
"""

import torch
from torch import Tensor

from zsqbench.compat import decompose, keep_custom_graphs, recompile_at_most

COMPILED_AT_MOST = 64
"""How many versions of a function, for other networks or batch sizes, a worker compiles."""


def set_up(device: torch.device) -> None:
    """Set up torch.compile in this process, for what is compiled from now on."""
    recompile_at_most(COMPILED_AT_MOST)  # networks of one worker may be many
    keep_custom_graphs()  # most that are compiled here have an `autograd.Function`
    if device.type == "cpu":
        _clip_with_numbers()


def _clip_with_numbers() -> None:
    operators = torch.ops.aten
    decompose(
        {operators.threshold_backward.default: threshold_backward, operators.hardtanh_backward.default: clip_backward}
    )


def threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """The gradient where x is above the threshold, and else zero: ReLU's."""
    return gradient * (x - threshold if threshold else x).sign().clamp_min(0)


def clip_backward(gradient: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The gradient where x is between the two, and else zero: ReLU6's."""
    return gradient * ((x - low).sign().clamp_min(0) * (high - x).sign().clamp_min(0))
