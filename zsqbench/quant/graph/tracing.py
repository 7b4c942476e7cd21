"""Trace a network into a graph of named tensors with shapes."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsqbench.compat import is_assertion
from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.attention import ATTENTION, DIMENSIONS, FINITE, take_attention_apart
from zsqbench.quant.graph.constants import fold_constants
from zsqbench.quant.graph.inplace import make_out_of_place
from zsqbench.quant.graph.layers import functions_to_modules, join_norms
from zsqbench.quant.graph.operators import call_name
from zsqbench.quant.graph.rectifiers import rectifier, rectify_maxima
from zsqbench.quant.graph.tracer import BATCHES, first_line, images_of_zeros, torch_class, trace
from zsqbench.quant.graph.transposed import put_outputs_first


def capture(module: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a copy of a module, in eval mode, into a graph whose tensors have names and shapes.

    The graph has a normal form that does not depend on the style of the code. Nothing is changed in place. Values that
    only depend on parameters are constants. Attention is split into its parts. Convolutions, linear layers and batch
    normalisations that are called as functions of constants are modules.

    The name of a tensor, `tensor_name(node)`, is the path of the module that makes it, or `<path of the enclosing
    module>.<function>`; a second one of the same name gets the suffix `_1`. Raises ZSQBenchError for a module that
    cannot be traced, with the line of its code that is in the way, or that does not take images of `input_size`.
    """
    _check_inputs(module)
    copied = copy.deepcopy(module).eval()
    captured = fx.GraphModule(copied, _traced(copied, input_size), type(module).__name__)
    for node in captured.graph.nodes:
        node.meta["operator"] = _operator(captured, node)
        if node.op == "call_module":
            node.meta["padding_value"] = getattr(captured.get_submodule(str(node.target)), "value", None)
    make_out_of_place(captured)
    fold_constants(captured, [images_of_zeros(captured, images, input_size) for images in BATCHES])
    functions_to_modules(captured)
    _name_tensors(captured)
    _note_shapes(captured, input_size)
    take_attention_apart(captured)
    join_norms(captured)
    put_outputs_first(captured)
    rectify_maxima(captured)
    captured.recompile()
    return captured


def _check_inputs(module: nn.Module) -> None:
    """Raise ZSQBenchError unless a module can be called with only the images."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
    if len(needed) > 1:
        raise ZSQBenchError(
            f"{type(module).__name__} has {len(needed)} inputs ({', '.join(needed)}); expected one, the images; give "
            "the others a default, or wrap the network in a module that knows them"
        )


def _traced(module: nn.Module, input_size: tuple[int, int, int]) -> fx.Graph:
    """The graph of a module whose own assertions hold for images of this size."""
    try:
        graph = trace(module, input_size)
    except ZSQBenchError:
        _check_assertions(module, input_size)
        raise
    if any(is_assertion(node) for node in graph.nodes):
        _check_assertions(module, input_size)
    return graph


def _check_assertions(module: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raise ZSQBenchError if a module asserts that images have another size."""
    try:
        with torch.no_grad():
            module(images_of_zeros(module, 2, input_size))
    except AssertionError as error:
        raise ZSQBenchError(f"the network does not take images of size {input_size} ({first_line(error)})") from error
    except Exception:  # noqa: BLE001 - other problems are reported where they occur
        return


def _operator(captured: fx.GraphModule, node: fx.Node) -> str:
    name = _module_operator(captured.get_submodule(str(node.target))) if node.op == "call_module" else call_name(node)
    name = name.replace("_", "").lower()
    return rectifier(captured, node, name) or name


def _module_operator(module: nn.Module) -> str:
    name = (torch_class(module) or type(module)).__name__
    if isinstance(module, nn.Upsample) and module.mode.startswith("nearest"):
        return "upsamplingnearest2d"
    return name


def _name_tensors(captured: fx.GraphModule) -> None:
    taken: set[str] = set()
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            name = "input"
        elif node.op in ("call_function", "call_method"):
            name = ".".join(filter(None, (node.meta["called_in"], call_name(node))))
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
        self.current = n
        result = super().run_node(n)
        parts = result if isinstance(result, (tuple, list)) else [result]
        tensor = isinstance(result, Tensor) and result.is_floating_point()
        n.meta["shape"] = tuple(result.shape) if tensor else None
        if isinstance(result, Tensor) and any(user.meta["operator"] in ATTENTION for user in n.users):
            n.meta |= {FINITE: tensor and bool(result.isfinite().all()), DIMENSIONS: result.dim()}
        n.meta["carries_values"] = any(isinstance(part, Tensor) and part.is_floating_point() for part in parts)
        return result


def _note_shapes(captured: fx.GraphModule, input_size: tuple[int, int, int]) -> None:
    # two images: a batch of one would let `squeeze` remove the batch dimension
    recorder = _ShapeRecorder(captured)
    try:
        with torch.no_grad():
            recorder.run(images_of_zeros(captured, 2, input_size))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        line = first_line(error)
        if "view size is not compatible" in line:
            raise ZSQBenchError(
                f"{recorder.current.meta['tensor_name']!r} takes a view of a tensor that is not contiguous, as all are "
                "in layout channels_last; take reshape in place of view, or layout: contiguous"
            ) from error
        raise ZSQBenchError(f"the network does not take images of size {input_size} ({line})") from error
