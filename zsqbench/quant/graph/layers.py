"""Layers and batch normalisations that a network calls as functions become modules, as those are that it calls so."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from zsqbench.quant.graph.operators import NO_OPERATIONS, is_batch_norm, is_layer, operator, value_users

MADE = "made"
"""Key of a node's `meta`, true where it calls a module that the network itself does not have."""


def functions_to_modules(captured: fx.GraphModule) -> None:
    """Let modules do what convolutions, linear layers and batch normalisations do with constants, in place.

    Such a module has the path of the one that calls the function, if that does nothing else, and lies below it
    otherwise. Calls with the same constants share one. `x @ weight` is a linear layer, too.
    """
    made: dict[Any, str] = {}
    for node in list(captured.graph.nodes):
        make = _MAKERS.get(operator(node)) if node.op in ("call_function", "call_method") else None
        call = make(_Arguments(captured, node)) if make else None
        if call is None:
            continue
        source, identity, module = call
        path = made.get(identity)
        if path is None:
            path = made[identity] = _free_path(captured, node)
            captured.delete_submodule(path)
            captured.add_submodule(path, module)
        with captured.graph.inserting_before(node):
            new = captured.graph.call_module(path, (source,))
        new.meta |= node.meta | {"operator": type(module).__name__.lower(), MADE: path != node.meta["called_in"]}
        node.replace_all_uses_with(new)
        captured.graph.erase_node(node)
    for node in list(captured.graph.nodes):
        if node.op == "get_attr" and not node.users:
            captured.graph.erase_node(node)


def join_norms(captured: fx.GraphModule) -> None:
    """Let each batch normalisation read the layer before it directly where only no-operations lie between, in place."""
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


Call = tuple[fx.Node, Any, nn.Module]
"""The input of a call, what tells it from others, and the module that does the same."""


class _Arguments:
    """The arguments of a call, by the names and defaults of the function's signature."""

    def __init__(self, captured: fx.GraphModule, node: fx.Node) -> None:
        self._captured, self._node = captured, node
        self._names: tuple[str, ...] = ()

    def named(self, **defaults: Any) -> "_Arguments | None":
        """These arguments; None where there is one more, or one that is not constant besides the first."""
        self._names = tuple(defaults)
        if len(self._node.args) > len(defaults) or not self._node.kwargs.keys() <= defaults.keys():
            return None
        given = dict(zip(defaults, self._node.args, strict=False)) | self._node.kwargs
        self._given = defaults | given
        others = [value for name, value in self._given.items() if name != self._names[0]]
        constants = all(not isinstance(value, fx.Node) or value.op == "get_attr" for value in others)
        source = self._given[self._names[0]]
        return self if constants and isinstance(source, fx.Node) and source.op != "get_attr" else None

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    def tensor(self, name: str) -> Tensor | None:
        """The constant tensor of this name, if one is given."""
        value = self._given[name]
        found: Tensor | None = attrgetter(str(value.target))(self._captured) if isinstance(value, fx.Node) else value
        return found

    def call(self, module: nn.Module) -> Call:
        """The call of a module in place of the function."""
        rest = [value.target if isinstance(value, fx.Node) else value for value in list(self._given.values())[1:]]
        return self._given[self._names[0]], (type(module), *map(str, rest)), module.eval().requires_grad_(False)


def _convolution(kind: type[nn.Conv1d | nn.Conv2d], arguments: _Arguments) -> Call | None:
    given = arguments.named(input=None, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight = given.tensor("weight") if given else None
    if given is None or weight is None:
        return None
    groups = given["groups"]
    geometry: dict[str, Any] = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    kernel: Any = weight.shape[2:]
    module = kind(weight.shape[1] * groups, weight.shape[0], kernel, **geometry, device="meta")
    return given.call(_filled(module, weight, given.tensor("bias")))


def _transposed(arguments: _Arguments) -> Call | None:
    given = arguments.named(
        input=None, weight=None, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    weight = given.tensor("weight") if given else None
    if given is None or weight is None:
        return None
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    geometry: dict[str, Any] = {name: given[name] for name in names} | {"kernel_size": weight.shape[2:]}
    module = nn.ConvTranspose2d(weight.shape[0], weight.shape[1] * given["groups"], **geometry, device="meta")
    return given.call(_filled(module, weight, given.tensor("bias")))


def _linear(arguments: _Arguments) -> Call | None:
    given = arguments.named(input=None, weight=None, bias=None)
    weight = given.tensor("weight") if given else None
    if given is None or weight is None or weight.dim() != 2:  # noqa: PLR2004
        return None
    return given.call(_as_linear(weight, given.tensor("bias")))


def _matmul(arguments: _Arguments) -> Call | None:
    given = arguments.named(input=None, other=None)
    weight = given.tensor("other") if given else None
    if given is None or weight is None or weight.dim() != 2:  # noqa: PLR2004
        return None
    return given.call(_as_linear(weight.t().contiguous(), None))


def _batch_norm(arguments: _Arguments) -> Call | None:
    given = arguments.named(
        input=None,
        running_mean=None,
        running_var=None,
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
        cudnn_enabled=True,
    )
    mean = given.tensor("running_mean") if given else None
    if given is None or mean is None or given["training"]:
        return None
    module = BatchNorm2d(len(mean), eps=given["eps"], device="meta")
    module.running_mean, module.running_var = mean.detach().clone(), given.tensor("running_var")
    module.num_batches_tracked = None
    return given.call(_filled(module, given.tensor("weight"), given.tensor("bias")))


class BatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation of channels on axis 1, whatever the number of axes, as the function is."""

    def _check_input_dim(self, _: Tensor) -> None:
        pass


_MAKERS: dict[str, Callable[[_Arguments], Call | None]] = {
    "conv1d": partial(_convolution, nn.Conv1d),
    "conv2d": partial(_convolution, nn.Conv2d),
    "convtranspose2d": _transposed,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "batchnorm": _batch_norm,
}


def _as_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _filled(module, weight, bias)


def _filled(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    for name, value in (("weight", weight), ("bias", bias)):
        parameter = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
        module.register_parameter(name, parameter)
    return module


def _free_path(captured: fx.GraphModule, node: fx.Node) -> str:
    """The path of the module that calls, if it gives what the node gives and nothing else lies there, else one below.

    So a layer that pads or masks first has its own path.
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
    """True if two calls differ in their input alone."""
    return node.target is other.target and node.args[1:] == other.args[1:] and node.kwargs == other.kwargs


def _has(captured: fx.GraphModule, path: str) -> bool:
    found: Any = captured
    for part in path.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
