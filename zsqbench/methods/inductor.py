"""torch.compile is set up here: what it keeps, and how it differentiates what clips.

On a CPU, its kernels store truth values one by one. ReLU's derivative is one for each value of an activation, and
storing them took longer than a convolution of 16 channels. So derivatives of what clips are numbers here.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

COMPILED_AT_MOST = 64
"""How many versions of a function, for other networks or batch sizes, a worker compiles."""


def set_up(device: torch.device) -> None:
    """Set up torch.compile in this process, for what is compiled from now on."""
    # networks of one worker may be many, and beyond its limit torch would go on uncompiled
    torch._dynamo.config.recompile_limit = COMPILED_AT_MOST  # noqa: SLF001 - where torch documents it
    _keep_graphs()
    if device.type == "cpu":
        _clip_with_numbers()


def differentiable_twice(compiled: F) -> F:
    """A compiled function whose backward pass may run twice: by default the first overwrites what the second reads."""
    from torch._functorch import config

    if not hasattr(config, "donated_buffer"):  # before torch 2.6, where none overwrote anything
        return compiled

    @functools.wraps(compiled)
    def call(*arguments: Any, **options: Any) -> Any:
        with config.patch(donated_buffer=False):
            return compiled(*arguments, **options)

    return cast("F", call)


def _keep_graphs() -> None:
    """Let torch keep compiled graphs with an `autograd.Function`, where it can: most that are compiled here have one.

    It traces both of its passes into the graph, whose content is what the graph is found by.
    """
    from torch._functorch import config

    if hasattr(config, "autograd_cache_allow_custom_autograd_functions"):
        config.autograd_cache_allow_custom_autograd_functions = True


def _clip_with_numbers() -> None:
    from torch._inductor import decomposition

    operators = torch.ops.aten
    decomposition.decompositions.update(
        {operators.threshold_backward.default: threshold_backward, operators.hardtanh_backward.default: clip_backward}
    )


def threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """The gradient where x is above the threshold, and else zero: ReLU's."""
    return gradient * (x - threshold if threshold else x).sign().clamp_min(0)


def clip_backward(gradient: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The gradient where x is between the two, and else zero: ReLU6's."""
    return gradient * ((x - low).sign().clamp_min(0) * (high - x).sign().clamp_min(0))
