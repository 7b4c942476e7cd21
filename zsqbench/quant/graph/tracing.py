"""Tracing a network into a graph of named tensors with shapes."""

import copy
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.operators import REPARAMETRIZED
from zsqbench.quant.graph.rectifiers import rectifier, rectify_maxima
from zsqbench.quant.graph.transposed import put_outputs_first

_ALIASES = {"iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "truediv", "imatmul": "matmul"}
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_HERE = str(Path(__file__))
_TORCH = str(Path(torch.__file__).parent) + os.sep


class _Tracer(fx.Tracer):
    """A tracer that takes a torch module, however it is named, for one operator, and notes where each is called."""

    def __init__(self) -> None:
        super().__init__()
        self.current_module = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _torch_class(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        caller, self.current_module = self.current_module, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.current_module = caller  # not in a finally: where tracing fails, the path of the culprit is wanted
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["called_in"] = self.current_module
        return node


def capture(module: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a copy of a module, in eval mode, into a graph whose tensors have names and shapes.

    The name of a tensor, `tensor_name(node)`, is the path of the module that makes it, or `<path of the enclosing
    module>.<function>`; a second one of the same name gets the suffix `_1`. Raises ZSQBenchError for a module that
    cannot be traced, with the line of its code that is in the way, or that does not take images of `input_size`.
    """
    copied = copy.deepcopy(module).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(copied)
    except Exception as error:
        # Anything: what the module's own code raises when it is handed a placeholder instead of a tensor.
        where = f" in module {tracer.current_module!r}" if tracer.current_module else ""
        raise ZSQBenchError(
            f"{type(module).__name__} cannot be traced{where}{_place(error)} ({_first_line(error)}): what is computed "
            "may not depend on the values in tensors; take torch.where for a choice by value, make one by shape or "
            "setting in __init__, or put this code into a function with @torch.fx.wrap, which counts as one operator"
        ) from error
    captured = fx.GraphModule(copied, graph, type(module).__name__)
    for node in captured.graph.nodes:
        node.meta["operator"] = _operator(captured, node)
    _name_tensors(captured)
    _note_shapes(captured, input_size)
    put_outputs_first(captured)
    rectify_maxima(captured)
    return captured


def _operator(captured: fx.GraphModule, node: fx.Node) -> str:
    name = _module_operator(captured.get_submodule(str(node.target))) if node.op == "call_module" else _function(node)
    name = name.replace("_", "").lower()
    return rectifier(captured, node, name) or _ALIASES.get(name, name)


def _module_operator(module: nn.Module) -> str:
    name = (_torch_class(module) or type(module)).__name__
    if isinstance(module, _WEIGHTED) and "weight" not in module._parameters:  # noqa: SLF001
        return REPARAMETRIZED + name  # weight_norm and the like: the weight is computed from other parameters
    if isinstance(module, nn.Upsample) and module.mode == "nearest":
        return "upsamplingnearest2d"
    return name


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose computation a module does: its own, or one that it inherits without changing it."""
    kind = type(module)
    known = (base for base in kind.__mro__ if base is FrozenBatchNorm2d or base.__module__.startswith("torch.nn.mod"))
    base: type[nn.Module] = next(known, nn.Module)
    if base is nn.Module or issubclass(base, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return None
    computes = ("forward", "_conv_forward")  # the second is nn.Conv2d's
    return base if all(getattr(kind, name, None) is getattr(base, name, None) for name in computes) else None


def _function(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", str(node.target)).strip("_")
    return _ALIASES.get(name, name)


def _name_tensors(captured: fx.GraphModule) -> None:
    taken: set[str] = set()
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            name = "input" if not taken else str(node.target)
        elif node.op in ("call_function", "call_method"):
            name = ".".join(filter(None, (node.meta["called_in"], _function(node))))
        else:
            name = str(node.target)
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        node.meta["tensor_name"] = unique


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape of each floating-point tensor, and which nodes carry such tensors."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        parts = result if isinstance(result, (tuple, list)) else [result]
        tensor = isinstance(result, Tensor) and result.is_floating_point()
        n.meta["shape"] = tuple(result.shape) if tensor else None
        n.meta["carries_values"] = any(isinstance(part, Tensor) and part.is_floating_point() for part in parts)
        return result


def _note_shapes(captured: fx.GraphModule, input_size: tuple[int, int, int]) -> None:
    example = next(captured.parameters(), torch.empty(0))
    # two images: a batch of one would let `squeeze` remove the batch dimension
    images = torch.zeros(2, *input_size, dtype=example.dtype, device=example.device)
    try:
        with torch.no_grad():
            _ShapeRecorder(captured).run(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        inputs = sum(node.op == "placeholder" for node in captured.graph.nodes)
        several = "" if inputs == 1 else f", and has {inputs} inputs; expected one, the images"
        raise ZSQBenchError(
            f"the network does not take images of size {input_size}{several} ({_first_line(error)})"
        ) from error


def _place(error: Exception) -> str:
    """The last line of the traceback that is not torch's: where the user's code asked for what cannot be traced."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if not f.filename.startswith(_TORCH) and f.filename != _HERE]
    return f" at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
