"""Check that a network can be hashed, copied and quantized. Failures are one clear line."""

import copy
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from zsqbench.compat import attributes, children
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.zoo.checkpoints import some


def bare(module: nn.Module) -> nn.Module:
    """The network without torch.compile or DataParallel around it or its children. These wrappers only run it."""
    # asking for the class of compiled modules would import all of torch's compiler
    inner = module.module if isinstance(module, nn.DataParallel) else getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return bare(inner)
    table = children(module)
    for name, child in table.items():
        if child is not None and (plain := bare(child)) is not child:
            table[name] = plain
    return module


def check_built(module: nn.Module) -> None:
    """Raise ZSQBenchError for TorchScript, tensors without shape or values, and networks that cannot be kept or copied.

    Methods get a copy of the network, and tracing copies it, too.
    """
    scripted = next((path for path, child in module.named_modules() if isinstance(child, torch.jit.ScriptModule)), None)
    if scripted is not None:
        which = f"module {scripted!r} of the network" if scripted else "the network"
        raise ZSQBenchError(
            f"{which} is a ScriptModule, whose layers cannot be quantized; build it without torch.jit.script and "
            "torch.jit.trace"
        )
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ZSQBenchError(
            f"the network has tensors without a shape: {some(lazy)}; Lazy modules learn their shapes from a first "
            "batch: call the network on one where it is built, such as torch.zeros(1, 3, 224, 224)"
        )
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ZSQBenchError(
            f"the network has tensors without values, on device meta: {some(empty)}; build it on the CPU"
        )
    try:
        module.state_dict()
    except Exception as error:  # a user's get_extra_state may raise anything
        raise ZSQBenchError(f"the network has no state that can be kept: {one_line(error)}") from error
    try:
        copy.deepcopy(module)
    except Exception as error:  # a user's object may raise anything when it is copied
        raise ZSQBenchError(
            f"the network cannot be copied, which each method does: {_uncopied(module)}{one_line(error)}; make such an "
            "object where it is used, or outside of the network"
        ) from error


def check_finite(module: nn.Module) -> None:
    """Raise ZSQBenchError for parameters that are NaN or infinite."""
    broken = [name for name, tensor in module.named_parameters() if not tensor.detach().isfinite().all()]
    if broken:
        raise ZSQBenchError(
            f"the network is NaN or infinite as it was built, in {some(broken)}: initialise it, or give other weights"
        )


def _uncopied(module: nn.Module) -> str:
    """The attribute that cannot be copied, if a single attribute is the cause."""
    for path, child in module.named_modules():
        for name, value in attributes(child):
            try:
                copy.deepcopy(value)
            except Exception:  # noqa: BLE001  # as above
                return f"attribute {f'{path}.{name}'.removeprefix('.')!r}: "
    return ""
