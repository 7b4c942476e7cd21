"""A network as a graph of named tensors, and the role that each tensor plays in a scheme.

`capture` traces a module; `roles` gives each new value a field of `zsqbench.scheme.Placement`.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators by a name that the module, function and method forms share, without case and underscores:
# nn.ReLU6, F.relu6 -> relu6; nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d -> adaptiveavgpool2d; x.add_(), += -> add.
LAYERS = _names("conv2d linear")
BATCH_NORMS = _names("batchnorm1d batchnorm2d syncbatchnorm frozenbatchnorm2d")
ACTIVATIONS = _names(
    "celu clamp clip elu gelu hardsigmoid hardswish hardtanh leakyrelu mish prelu relu relu6 selu sigmoid silu "
    "softplus softsign tanh"
)
AVERAGE_POOLS = _names("adaptiveavgpool2d avgpool2d")
# These hand on values that are already there, or that every grid with a zero holds: no tensor of their own.
PASS_THROUGH = _names(
    "adaptivemaxpool2d channelshuffle chunk clone contiguous detach dropout dropout1d dropout2d expand flatten flip "
    "getitem identity maxpool1d maxpool2d movedim narrow permute pixelshuffle pixelunshuffle reflectionpad2d "
    "replicationpad2d reshape roll split squeeze stochasticdepth to transpose unbind unflatten unsqueeze view zeropad2d"
)
# A parameter of several dimensions that enters one of these is no matrix of weights.
ELEMENTWISE = PASS_THROUGH | _names("add sub mul truediv div cat layernorm prelu")
# Modules whose weights are not quantized yet: to leave them float in silence would falsify a table.
UNSUPPORTED = _names(
    "bilinear conv1d conv3d convtranspose1d convtranspose2d convtranspose3d embedding embeddingbag gru lstm "
    "multiheadattention rnn"
)

_ALIASES = {"iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "truediv"}
_IMAGE_DIMENSIONS = 4
_SPATIAL = frozenset({2, 3})


class _Tracer(fx.Tracer):
    """A tracer that takes FrozenBatchNorm2d for one operator, and notes the module in which each operator is called."""

    def __init__(self) -> None:
        super().__init__()
        self.current_module = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FrozenBatchNorm2d) or super().is_leaf_module(m, module_qualified_name)

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
    cannot be traced or that does not take images of `input_size`.
    """
    copied = copy.deepcopy(module).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(copied)
    except Exception as error:
        # Anything: what the module's own code raises when it is handed a placeholder instead of a tensor.
        where = f" in module {tracer.current_module!r}" if tracer.current_module else ""
        raise ZSQBenchError(
            f"{type(module).__name__} cannot be traced{where} ({_first_line(error)}); "
            "its forward pass may not depend on the values in its tensors"
        ) from error
    captured = fx.GraphModule(copied, graph, type(module).__name__)
    for node in captured.graph.nodes:
        node.meta["operator"] = _operator(captured, node)
    _name_tensors(captured)
    _note_shapes(captured, input_size)
    return captured


def tensor_name(node: fx.Node) -> str:
    """The readable, unique name of what a node of a captured graph makes."""
    return str(node.meta["tensor_name"])


def operator(node: fx.Node) -> str:
    """The operator of a node of a captured graph, named as in `LAYERS` and `ACTIVATIONS`."""
    return str(node.meta["operator"])


def is_layer(node: fx.Node) -> bool:
    """Whether the node calls a convolution or linear layer."""
    return node.op == "call_module" and operator(node) in LAYERS


def is_batch_norm(node: fx.Node) -> bool:
    """Whether the node calls a batch normalisation."""
    return node.op == "call_module" and operator(node) in BATCH_NORMS


def check_supported(captured: fx.GraphModule) -> None:
    """Raise ZSQBenchError where the network holds a weight that no quantizer reaches."""
    for node in captured.graph.nodes:
        if (node.op == "call_module" and operator(node) in UNSUPPORTED) or _multiplies_by_parameter(node):
            raise ZSQBenchError(
                f"the weight of {tensor_name(node)!r} ({operator(node)}) cannot be quantized: "
                "only those of nn.Conv2d and nn.Linear modules can"
            )


def roles(captured: fx.GraphModule) -> dict[fx.Node, str]:
    """The role of each tensor, in execution order: a field name of `Placement`.

    Left out are what hardware never stores (the output of a layer or an addition that only activation functions
    read) and what repeats the values of another tensor (reshape, slice, zero padding, max-pooling, dropout).
    """
    outputs = _output_producers(captured)
    found = {}
    for node in captured.graph.nodes:
        if _is_new_value(node) and not _is_fused(node, outputs):
            found[node] = "logits" if node in outputs else _role(node)
    return found


def _multiplies_by_parameter(node: fx.Node) -> bool:
    matrices = [
        source for source in node.all_input_nodes if source.op == "get_attr" and len(source.meta["shape"] or ()) > 1
    ]
    return node.op != "output" and bool(matrices) and operator(node) not in ELEMENTWISE


def _is_new_value(node: fx.Node) -> bool:
    return node.meta["shape"] is not None and node.op not in ("get_attr", "output") and not _repeats_values(node)


def _is_fused(node: fx.Node, outputs: set[fx.Node]) -> bool:
    """Whether the node and its reader are computed as one, so that there is no tensor between them."""
    if is_layer(node) and _feeds_one_batch_norm(node):
        return True
    if node in outputs or not (is_layer(node) or is_batch_norm(node) or operator(node) == "add"):
        return False
    readers = list(_readers(node))
    return bool(readers) and all(operator(reader) in ACTIVATIONS for reader in readers)


def _role(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if operator(node) in ACTIVATIONS:
        return "activation"
    if is_layer(node) or (is_batch_norm(node) and is_layer(node.all_input_nodes[0])):
        readers = list(_readers(node))
        return "addend" if readers and all(_adds_tensors(reader) for reader in readers) else "linear"
    if _adds_tensors(node):
        return "sum"
    return "pooled" if _pools(node) else "other"


def _feeds_one_batch_norm(node: fx.Node) -> bool:
    users = list(node.users)
    return len(users) == 1 and is_batch_norm(users[0])


def _adds_tensors(node: fx.Node) -> bool:
    tensors = [value for value in (*node.args, *node.kwargs.values()) if _is_activation(value)]
    return operator(node) == "add" and len(tensors) > 1


def _is_activation(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op != "get_attr" and bool(value.meta["carries_values"])


def _pools(node: fx.Node) -> bool:
    if operator(node) != "mean":
        return operator(node) in AVERAGE_POOLS
    rank = len(node.all_input_nodes[0].meta["shape"])
    dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if dims is None or rank != _IMAGE_DIMENSIONS:
        return False
    return {dim % rank for dim in ((dims,) if isinstance(dims, int) else dims)} <= _SPATIAL


def _repeats_values(node: fx.Node) -> bool:
    if operator(node) != "pad":
        return operator(node) in PASS_THROUGH
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)  # noqa: PLR2004
    return value in (None, 0)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with the values of a node, directly or after they were only moved."""
    for user in node.users:
        if user.op == "output":
            continue
        if _repeats_values(user):
            yield from _readers(user)
        elif user.meta["carries_values"]:  # and not, for instance, only its shape
            yield user


def _output_producers(captured: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values the network returns."""
    producers = set()
    for node in captured.graph.output_node().all_input_nodes:
        while _repeats_values(node):
            node = node.all_input_nodes[0]  # noqa: PLW2901
        producers.add(node)
    return producers


def _operator(captured: fx.GraphModule, node: fx.Node) -> str:
    name = type(captured.get_submodule(str(node.target))).__name__ if node.op == "call_module" else _function(node)
    name = name.replace("_", "").lower()
    return _ALIASES.get(name, name)


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
        raise ZSQBenchError(f"the network does not take images of size {input_size}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
