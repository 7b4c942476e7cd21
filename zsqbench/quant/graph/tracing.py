"""A network as a graph of named tensors, and the role that each tensor plays in a scheme.

`capture` traces a module; `roles` and `positions` give each new value fields of `zsqbench.scheme.Placement`, and
`weight_roles` and `activation_roles` say which of them counts at a placement.
"""

import copy
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError
from zsqbench.scheme import Placement


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators by a name that the module, function and method forms share, without case and underscores:
# nn.ReLU6, F.relu6 -> relu6; nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d -> adaptiveavgpool2d; x.add_(), += -> add.
LAYERS = _names("conv2d linear")
BATCH_NORMS = _names("batchnorm1d batchnorm2d syncbatchnorm frozenbatchnorm2d")
RELUS = _names("relu relu6")
ACTIVATIONS = RELUS | _names(
    "celu clamp clip elu gelu hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu selu sigmoid silu "
    "softplus softsign tanh"
)
AVERAGE_POOLS = _names("adaptiveavgpool2d avgpool2d")
MULTIPLICATIONS = _names("mul multiply")
PRODUCTS = MULTIPLICATIONS | _names("matmul mm bmm einsum")
CONCATENATIONS = _names("cat concat concatenate stack hstack vstack")
# Between the last layers and what the network returns these are left to software, as a detector's decoding is.
ENDINGS = CONCATENATIONS | _names("logsigmoid logsoftmax sigmoid softmax")
# These hand on values that are already there, or that every grid with a zero holds: no tensor of their own.
PASS_THROUGH = _names(
    "adaptivemaxpool2d alphadropout amax amin broadcastto channelshuffle chunk circularpad2d clone contiguous detach "
    "dropblock2d dropout dropout1d dropout2d expand expandas flatten flip float getitem identity indexselect "
    "maxpool1d maxpool2d movedim narrow permute pixelshuffle pixelunshuffle ravel reflectionpad2d repeat "
    "replicationpad2d reshape reshapeas roll split squeeze stochasticdepth swapaxes swapdims tile to transpose unbind "
    "unflatten unfold unsqueeze upsamplingnearest2d view viewas zeropad2d"
)
# A parameter of several dimensions that enters one of these is no matrix of weights.
ELEMENTWISE = PASS_THROUGH | CONCATENATIONS | MULTIPLICATIONS | _names("add sub truediv div layernorm prelu")

_ALIASES = {"iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "truediv", "imatmul": "matmul"}
_IMAGE_DIMENSIONS = 4
_SPATIAL = frozenset({2, 3})
_REPARAMETRIZED = "reparametrized"
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
    return captured


def tensor_name(node: fx.Node) -> str:
    """The readable name of the tensor that a node of a captured graph makes, which no other tensor has.

    What a batch normalisation makes of a layer's output bears the layer's name, so folding it changes no name.
    """
    if is_batch_norm(node) and is_layer(node.all_input_nodes[0]) and _feeds_one_batch_norm(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
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


def repeats_values(node: fx.Node) -> bool:
    """Whether a node only moves the values of its input, or adds zeros."""
    if operator(node) == "pad":
        return _argument(node, "value", 3) in (None, 0)
    if operator(node) == "interpolate":
        return str(_argument(node, "mode", 3) or "nearest").startswith("nearest")
    if operator(node) in CONCATENATIONS:
        return len(node.all_input_nodes) == 1
    if operator(node) == "add":  # 0 + x is how Python's sum begins
        return _count_activations(node) == 1 and any(type(value) in (int, float) and value == 0 for value in node.args)
    return operator(node) in PASS_THROUGH


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with the values of a node, directly or after they were only moved."""
    for user in node.users:
        if user.op == "output":
            continue
        if repeats_values(user):
            yield from readers(user)
        elif user.meta["carries_values"]:  # and not, for instance, only its shape
            yield user


def check_supported(captured: fx.GraphModule) -> None:
    """Raise ZSQBenchError where the network holds a weight that no quantizer reaches.

    To leave it float in silence would falsify a table.
    """
    for node in captured.graph.nodes:
        if _holds_matrix(captured, node) or _multiplies_by_parameter(node):
            kind = operator(node).removeprefix(_REPARAMETRIZED)
            rewrite = "; write it as one of these, or take a scheme that leaves weights alone, such as hw/w32a8"
            hint = "; make it a plain one first, by torch.nn.utils.parametrize.remove_parametrizations or the like"
            raise ZSQBenchError(
                f"the weight of {tensor_name(node)!r} ({kind}) cannot be quantized: only those of nn.Conv2d and "
                f"nn.Linear modules can{rewrite if kind == operator(node) else hint}"
            )


def roles(captured: fx.GraphModule) -> dict[fx.Node, str]:
    """The role of each tensor by what makes and reads it, in execution order: one of `ACTIVATION_ROLES`.

    Left out are what hardware never stores (the output of a layer or an addition that only activation functions
    read), what repeats the values of another tensor (reshape, slice, zero padding, max-pooling, dropout), and what
    comes after the network's raw outputs.
    """
    outputs, after = _raw_outputs(captured)
    found = {}
    for node in captured.graph.nodes:
        if _is_new_value(node) and node not in after and not _is_fused(node, outputs):
            found[node] = "logits" if node in outputs else _role(node)
    return found


def output_layers(captured: fx.GraphModule) -> list[str]:
    """The paths of the modules that give the network's raw outputs, in execution order, each once.

    That is the last layer on the way to each output, or the batch normalisation behind it, before any activation.
    Raises ZSQBenchError where an output comes from no layer.
    """
    paths: dict[str, None] = {}
    outputs = output_producers(captured)
    for node in captured.graph.nodes:
        if node not in outputs:
            continue
        maker = _without_moves(node.all_input_nodes[0]) if operator(node) in ACTIVATIONS else node
        if not (is_layer(maker) or is_batch_norm(maker)):
            raise ZSQBenchError(
                f"the output {tensor_name(node)!r} ({operator(node)}) comes from no convolution or linear layer; what "
                "decodes outputs belongs into postprocess"
            )
        paths[str(maker.target)] = None
    return list(paths)


def positions(captured: fx.GraphModule) -> dict[fx.Node, tuple[str, ...]]:
    """Which of `POSITIONS` a tensor is at besides, for those that are at any; never an output of the network."""
    first = next(iter(_layers(captured).values()), None)
    read_last = {_without_pooling(node.all_input_nodes[0]) for node in _last_layers(captured)}
    found: dict[fx.Node, tuple[str, ...]] = {}
    for node, role in roles(captured).items():
        if role != "logits":
            maker = _maker(node)
            places = {
                "stem": maker is first,
                "features": node in read_last and is_layer(maker),
                "feature_sum": node in read_last and _adds_tensors(maker),
            }
            found[node] = tuple(position for position, is_here in places.items() if is_here)
    return {node: at for node, at in found.items() if at}


def weight_roles(captured: fx.GraphModule) -> dict[str, str]:
    """The role of each weight by the path of its layer, in execution order: one of `WEIGHT_ROLES`."""
    paths, last = list(_layers(captured)), {str(node.target) for node in _last_layers(captured)}
    ends = dict.fromkeys(paths[:1], "first_weight") | dict.fromkeys(last, "last_weight")
    return {path: ends.get(path, "weight") for path in paths}


def activation_roles(captured: fx.GraphModule, placement: Placement) -> dict[fx.Node, str]:
    """The role of each tensor, in execution order, or its position where the placement gives that a width."""
    at = positions(captured)
    return {node: placement.role(role, at.get(node, ())) for node, role in roles(captured).items()}


def first_calls(captured: fx.GraphModule, of: Mapping[fx.Node, str]) -> dict[fx.Node, fx.Node]:
    """For each of these tensors that a layer makes in another than its first call, the one of its first call.

    A head that is shared over pyramid levels has one tensor behind each of its layers, whatever the level. Not so where
    one call reads what the other gave, as in a network that goes through a layer again, or where roles differ.
    """
    first: dict[tuple[str, ...], fx.Node] = {}
    found = {}
    for node, role in of.items():
        maker = _maker(node)
        if maker.op == "call_module" and any(True for _ in captured.get_submodule(str(maker.target)).parameters()):
            made = (role, str(maker.target), *(operator(each) for each in _way(maker, node)))
            if first.setdefault(made, node) is not node and not comes_from(node, first[made]):
                found[node] = first[made]
    return found


def comes_from(node: fx.Node, other: fx.Node) -> bool:
    """Whether a node is computed from another one."""
    found, pending = {node}, [node]
    while pending:
        sources = [source for source in pending.pop().all_input_nodes if source not in found]
        found.update(sources)
        pending += sources
    return other in found


def _way(maker: fx.Node, node: fx.Node) -> Iterator[fx.Node]:
    """A tensor and what lies between it and the operator whose result it is, backwards."""
    while node is not maker:
        yield node
        node = node.all_input_nodes[0]


def _layers(captured: fx.GraphModule) -> dict[str, fx.Node]:
    """The first call of each layer by its path, in execution order."""
    first: dict[str, fx.Node] = {}
    for node in captured.graph.nodes:
        if is_layer(node):
            first.setdefault(str(node.target), node)
    return first


def _last_layers(captured: fx.GraphModule) -> list[fx.Node]:
    """Calls of the layers that the outputs come from: of a classifier one, of a detector those of each head."""
    calls = [node for node in captured.graph.nodes if is_layer(node)]
    makers = {_maker(node) for node in output_producers(captured)}
    return [node for node in calls if node in makers] or calls[-1:]


def _maker(node: fx.Node) -> fx.Node:
    """The operator whose result a tensor is, seen through activation function and batch normalisation."""
    maker = node
    if operator(maker) in ACTIVATIONS:
        maker = _without_moves(maker.all_input_nodes[0])
    if is_batch_norm(maker):
        maker = _without_moves(maker.all_input_nodes[0])
    return maker


def _without_pooling(node: fx.Node) -> fx.Node:
    while repeats_values(node) or _pools(node):
        node = node.all_input_nodes[0]
    return node


def _without_moves(node: fx.Node) -> fx.Node:
    while repeats_values(node):
        node = node.all_input_nodes[0]
    return node


def _holds_matrix(captured: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or operator(node) in LAYERS | BATCH_NORMS | ELEMENTWISE:
        return False
    return any(parameter.dim() > 1 for parameter in captured.get_submodule(str(node.target)).parameters())


def _multiplies_by_parameter(node: fx.Node) -> bool:
    matrices = [
        source for source in node.all_input_nodes if source.op == "get_attr" and len(source.meta["shape"] or ()) > 1
    ]
    return node.op != "output" and bool(matrices) and operator(node) not in ELEMENTWISE


def _is_new_value(node: fx.Node) -> bool:
    return node.meta["shape"] is not None and node.op not in ("get_attr", "output") and not repeats_values(node)


def _is_fused(node: fx.Node, outputs: set[fx.Node]) -> bool:
    """Whether the node and its reader are computed as one, so that there is no tensor between them."""
    if is_layer(node) and _feeds_one_batch_norm(node):
        return True
    if node in outputs or not (is_layer(node) or is_batch_norm(node) or operator(node) == "add"):
        return False
    read_by = list(readers(node))
    return bool(read_by) and all(operator(reader) in ACTIVATIONS for reader in read_by)


def _role(node: fx.Node) -> str:
    kind = operator(node)
    read_by = list(readers(node))
    if node.op == "placeholder":
        role = "input"
    elif kind in RELUS:
        role = "relu"
    elif kind in ACTIVATIONS:
        role = "gate" if read_by and all(_multiplies_tensors(reader) for reader in read_by) else "activation"
    elif is_layer(node) or (is_batch_norm(node) and is_layer(node.all_input_nodes[0])):
        role = "addend" if read_by and all(_adds_tensors(reader) for reader in read_by) else "linear"
    elif _adds_tensors(node):
        role = "sum"
    elif kind in PRODUCTS and _count_activations(node) > 1:
        role = "product"
    elif kind in CONCATENATIONS:
        role = "concat"
    else:
        role = "pooled" if _pools(node) else "other"
    return role


def _feeds_one_batch_norm(node: fx.Node) -> bool:
    users = list(node.users)
    return len(users) == 1 and is_batch_norm(users[0])


def _adds_tensors(node: fx.Node) -> bool:
    return operator(node) == "add" and _count_activations(node) > 1


def _multiplies_tensors(node: fx.Node) -> bool:
    return operator(node) in MULTIPLICATIONS and _count_activations(node) > 1


def _count_activations(node: fx.Node) -> int:
    """How many of the arguments are tensors that the network computes; x + x has two."""
    values = (*node.args, *node.kwargs.values())
    return sum(
        isinstance(value, fx.Node) and value.op != "get_attr" and bool(value.meta["carries_values"]) for value in values
    )


def _pools(node: fx.Node) -> bool:
    if operator(node) != "mean":
        return operator(node) in AVERAGE_POOLS
    source = node.all_input_nodes[0]
    rank = len(source.meta["shape"])
    given: Any = node.kwargs.get("axis", _argument(node, "dim", 1))
    if given is None:
        return False
    dims = {dim % rank for dim in ((given,) if isinstance(given, int) else given)}
    if rank == _IMAGE_DIMENSIONS:
        return dims <= _SPATIAL
    # the rest of an image: its rows, of which the mean was taken, or its places one after the other
    image = _without_moves(source)
    return rank == _IMAGE_DIMENSIONS - 1 and dims == {2} and (len(image.meta["shape"]) > rank or _pools(image))


def _argument(node: fx.Node, name: str, index: int) -> Any:
    return node.kwargs.get(name, node.args[index] if len(node.args) > index else None)


def output_producers(captured: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values the network returns, before any sigmoid, softmax or concatenation: its raw outputs."""
    return _raw_outputs(captured)[0]


def decoding(captured: fx.GraphModule) -> set[fx.Node]:
    """What lies between the raw outputs and the end of the network, values that are only moved there included."""
    return _raw_outputs(captured)[1]


def _raw_outputs(captured: fx.GraphModule) -> tuple[set[fx.Node], set[fx.Node]]:
    outputs: set[fx.Node] = set()
    after: set[fx.Node] = set()
    pending = list(captured.graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        moves = repeats_values(node)
        if (moves or operator(node) in ENDINGS) and all(_is_end(user, after) for user in node.users):
            after.add(node)
            pending += [source for source in node.all_input_nodes if source.meta["carries_values"]]
        else:
            outputs.add(_without_moves(node) if moves else node)
    return outputs - after, after


def _is_end(user: fx.Node, after: set[fx.Node]) -> bool:
    return user.op == "output" or user in after or not user.meta["carries_values"]


def _operator(captured: fx.GraphModule, node: fx.Node) -> str:
    name = _module_operator(captured.get_submodule(str(node.target))) if node.op == "call_module" else _function(node)
    name = name.replace("_", "").lower()
    return _ALIASES.get(name, name)


def _module_operator(module: nn.Module) -> str:
    name = (_torch_class(module) or type(module)).__name__
    if isinstance(module, nn.Conv2d | nn.Linear) and "weight" not in module._parameters:  # noqa: SLF001
        return _REPARAMETRIZED + name  # weight_norm and the like: the weight is computed from other parameters
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
