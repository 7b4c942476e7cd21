"""Turn layers and batch normalisations that a network calls as functions into modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from zsqbench.quant.graph.operators import NO_OPERATIONS, is_batch_norm, is_layer, operator, value_users

MADE = "made"
"""Key of a node's `meta`. True: it calls a module that the network itself does not have."""

_MATRIX = 2


def functions_to_modules(captured: fx.GraphModule) -> None:
    """Replace functions of convolutions, linear layers and batch normalisations with constants by modules, in place.

    If the calling module does nothing else, the new module has its path. Otherwise it is below the calling module.
    Calls with the same constants share a module. `x @ weight` is also a linear layer.
    """
    made: dict[tuple[str, ...], str] = {}
    for node in list(captured.graph.nodes):
        make = _MAKERS.get(operator(node)) if node.op in ("call_function", "call_method") else None
        by = make(captured, node) if make else None
        if by is None:
            continue
        path = made.get(by.identity)
        if path is None:
            path = made[by.identity] = _free_path(captured, node)
            captured.delete_submodule(path)
            captured.add_submodule(path, by.module)
        with captured.graph.inserting_before(node):
            new = captured.graph.call_module(path, (by.source,))
        new.meta |= node.meta | {"operator": type(by.module).__name__.lower(), MADE: path != node.meta["called_in"]}
        node.replace_all_uses_with(new)
        captured.graph.erase_node(node)
    for node in list(captured.graph.nodes):
        if node.op == "get_attr" and not node.users:
            captured.graph.erase_node(node)


def join_norms(captured: fx.GraphModule) -> None:
    """Let each batch normalisation directly read the layer before it if only no-operations are between, in place."""
    for node in captured.graph.nodes:
        if not is_batch_norm(node):
            continue
        source = node.all_input_nodes[0]
        between = []
        while operator(source) in NO_OPERATIONS and len(value_users(source)) == 1:
            between.append(source)
            source = source.all_input_nodes[0]
        if between and is_layer(source) and len(value_users(source)) == 1:
            node.replace_input_with(node.all_input_nodes[0], source)
            for skipped in between:
                if not skipped.users:
                    captured.graph.erase_node(skipped)


@dataclass(frozen=True)
class Replacement:
    """A module that computes the same as a call of a function."""

    source: fx.Node
    """The input of the call."""
    identity: tuple[str, ...]
    """The module's class and the call's other arguments. Calls with equal keys share a module."""
    module: nn.Module


@dataclass(frozen=True)
class _Call:
    """A call of a function on a value of the network, with constants as other arguments."""

    captured: fx.GraphModule
    source: fx.Node
    given: Mapping[str, Any]
    """The other arguments by name: constant tensors as nodes, and plain values."""

    @classmethod
    def of(cls, captured: fx.GraphModule, node: fx.Node, **defaults: Any) -> "_Call | None":
        """The call of a function with these arguments besides its input. None: it is another kind of call."""
        names = ("input", *defaults)
        if len(node.args) > len(names) or not node.kwargs.keys() <= {*names}:
            return None
        given = defaults | dict(zip(names, node.args, strict=False)) | node.kwargs
        source = given.pop("input", None)
        constants = all(not isinstance(value, fx.Node) or value.op == "get_attr" for value in given.values())
        is_value = isinstance(source, fx.Node) and source.op != "get_attr"
        return cls(captured, source, given) if constants and is_value else None

    def tensor(self, name: str) -> Tensor | None:
        """The constant tensor of this name, if one is given."""
        value = self.given[name]
        found: Tensor | None = attrgetter(str(value.target))(self.captured) if isinstance(value, fx.Node) else value
        return found

    def by(self, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> Replacement:
        """The module that replaces it, with copies of this weight and bias."""
        for name, value in (("weight", weight), ("bias", bias)):
            parameter = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            module.register_parameter(name, parameter)
        values = [value.target if isinstance(value, fx.Node) else value for value in self.given.values()]
        return Replacement(self.source, (type(module).__name__, *map(str, values)), module.eval())


def _convolution(kind: type[nn.Conv1d | nn.Conv2d], captured: fx.GraphModule, node: fx.Node) -> Replacement | None:
    call = _Call.of(captured, node, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight = call.tensor("weight") if call else None
    if call is None or weight is None:
        return None
    kernel: Any = weight.shape[2:]
    channels = weight.shape[1] * call.given["groups"], weight.shape[0]
    module = kind(*channels, kernel, **_geometry(call), device="meta")
    return call.by(module, weight, call.tensor("bias"))


def _transposed(captured: fx.GraphModule, node: fx.Node) -> Replacement | None:
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    call = _Call.of(captured, node, weight=None, bias=None, **defaults)
    weight = call.tensor("weight") if call else None
    if call is None or weight is None:
        return None
    kernel: Any = weight.shape[2:]
    channels = weight.shape[0], weight.shape[1] * call.given["groups"]
    module = nn.ConvTranspose2d(*channels, kernel, **_geometry(call), device="meta")
    return call.by(module, weight, call.tensor("bias"))


def _geometry(call: _Call) -> dict[str, Any]:
    """The arguments of a convolution that its module has under the same names."""
    return {name: value for name, value in call.given.items() if name not in ("weight", "bias")}


def _linear(captured: fx.GraphModule, node: fx.Node) -> Replacement | None:
    call = _Call.of(captured, node, weight=None, bias=None)
    weight = call.tensor("weight") if call else None
    return None if call is None or weight is None else _multiplying(call, weight, call.tensor("bias"))


def _matmul(captured: fx.GraphModule, node: fx.Node) -> Replacement | None:
    call = _Call.of(captured, node, other=None)
    weight = call.tensor("other") if call else None
    if call is None or weight is None or weight.dim() != _MATRIX:
        return None
    return _multiplying(call, weight.t().contiguous(), None)


def _multiplying(call: _Call, weight: Tensor, bias: Tensor | None) -> Replacement | None:
    if weight.dim() != _MATRIX:
        return None
    return call.by(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _batch_norm(captured: fx.GraphModule, node: fx.Node) -> Replacement | None:
    defaults = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
    call = _Call.of(captured, node, running_mean=None, running_var=None, weight=None, bias=None, **defaults)
    mean = call.tensor("running_mean") if call else None
    if call is None or mean is None or call.given["training"]:
        return None
    module = BatchNorm2d(len(mean), eps=call.given["eps"], device="meta")
    module.running_mean, module.running_var = mean.detach().clone(), call.tensor("running_var")
    module.num_batches_tracked = None
    return call.by(module, call.tensor("weight"), call.tensor("bias"))


class BatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation of channels on axis 1 for any number of axes, like the function."""

    def _check_input_dim(self, _: Tensor) -> None:
        pass


_MAKERS: dict[str, Callable[[fx.GraphModule, fx.Node], Replacement | None]] = {
    "conv1d": partial(_convolution, nn.Conv1d),
    "conv2d": partial(_convolution, nn.Conv2d),
    "convtranspose2d": _transposed,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "batchnorm": _batch_norm,
}


def _free_path(captured: fx.GraphModule, node: fx.Node) -> str:
    """The path of the calling module, if it returns the node's result and has no other layer, or else a path below.

    So a layer that first pads or masks has its own path.
    """
    caller = str(node.meta["called_in"])
    constants = [source for source in node.all_input_nodes if source.op == "get_attr"]
    own = {source for source in constants if all(_same_call(user, node) for user in source.users)}
    held = (other for other in captured.graph.nodes if other.op in ("call_module", "get_attr") and other not in own)
    is_free = not any(_lies_in(str(other.target), caller) for other in held)
    if caller and is_free and not any(_lies_in(user.meta["called_in"], caller) for user in node.users):
        return caller
    path = base = ".".join(filter(None, (caller, operator(node))))
    count = 0
    while _has(captured, path):
        count += 1
        path = f"{base}_{count}"
    return path


def _lies_in(place: str, path: str) -> bool:
    return place == path or place.startswith(f"{path}.")


def _same_call(node: fx.Node, other: fx.Node) -> bool:
    """True if two calls only differ in their input."""
    return node.target is other.target and node.args[1:] == other.args[1:] and node.kwargs == other.kwargs


def _has(captured: fx.GraphModule, path: str) -> bool:
    found: Any = captured
    for part in path.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
