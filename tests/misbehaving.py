"""A plugin that does to its process what a method must not do, and then ends well, or not at all.

Each generator gives Gaussian noise, as the shipped `noise` does. Its name says what else it does.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import zsqbench

FOR_EVER = 600


def patches_argmax() -> None:
    """Each network's answer is another one."""
    argmax = torch.argmax
    torch.argmax = torch.Tensor.argmax = lambda x, *args, **options: argmax(-x, *args, **options)


def patches_round() -> None:
    """Numbers are rounded down."""
    torch.round = torch.floor
    torch.Tensor.round = torch.Tensor.floor
    torch.Tensor.round_ = torch.Tensor.floor_


def patches_convolution() -> None:
    """Convolutions double what they give."""
    forward = nn.Conv2d._conv_forward
    nn.Conv2d._conv_forward = lambda *args: 2 * forward(*args)


def patches_module() -> None:
    """Networks stay in training mode."""
    nn.Module.eval = nn.Module.train
    nn.Module.__call__ = lambda self, x, *args: 0 * self.forward(x, *args)


class Halves(TorchFunctionMode):
    """Functions of tensors give half of what they should."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result / 2 if isinstance(result, torch.Tensor) and func is torch.relu else result


def pushes_a_mode() -> None:
    """A mode that is never left."""
    Halves().__enter__()
    torch.nn.functional.relu = lambda x, *_, **__: 0 * x


def starts_a_thread() -> None:
    """A thread that is no daemon."""
    threading.Thread(target=time.sleep, args=(FOR_EVER,)).start()


def hangs_at_exit() -> None:
    """A handler that does not return."""
    atexit.register(time.sleep, FOR_EVER)


def forks() -> None:
    """A copy of the process that lives on, with all its pipes."""
    if os.fork() == 0:
        time.sleep(FOR_EVER)


def starts_a_child() -> None:
    """A program that does not end, in a session of its own."""
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOR_EVER})"], start_new_session=True)


def overflows_the_stack() -> None:
    """A segmentation fault."""
    sys.setrecursionlimit(10**9)

    def deeper(x: int) -> int:
        return min([x], key=deeper)

    deeper(0)


def never_returns() -> None:
    """A step without an end."""
    time.sleep(FOR_EVER)


CHANGES = [patches_argmax, patches_round, patches_convolution, patches_module, pushes_a_mode]
"""These change the numbers of a step that runs in the same process afterwards."""

LEFT_BEHIND = [starts_a_thread, hangs_at_exit, forks, starts_a_child]
"""These live on after a step that ended well."""

NEVER_DONE = [overflows_the_stack, never_returns]


def _generator(does: Any) -> type[zsqbench.Generator]:
    class Misbehaving(zsqbench.Generator):
        __doc__ = does.__doc__
        name = does.__name__
        images: int = 16

        def generate(self, teacher: Any, ctx: Any) -> zsqbench.CalibrationSet:
            images = ctx.randn(self.images, *teacher.input_size)
            does()
            return zsqbench.CalibrationSet(images)

    return Misbehaving


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """A generator for each of them."""
    return [_generator(does) for does in (*CHANGES, *LEFT_BEHIND, *NEVER_DONE)]
