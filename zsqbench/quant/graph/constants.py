"""Constants of a graph: values that depend on parameters, buffers and image sizes, but not on values of images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsqbench.compat import is_assertion
from zsqbench.quant.graph.operators import call_name, names

CONSTANTS = "constants"
"""Name of the submodule that holds the values that `fold_constants` computed."""


_SIZES = names("shape ndim dtype device size dim ndimension numel nelement is_nested")
"""Attributes and methods of a tensor that do not depend on its values."""
_LIKE_ANOTHER = names("full_like new_full new_ones new_tensor new_zeros ones_like zeros_like")
_CREATIONS = _LIKE_ANOTHER | names("arange eye full linspace ones zeros")
"""Functions that make a tensor. The first group takes type and size from another tensor."""


def fold_constants(captured: fx.GraphModule, batches: Sequence[Tensor]) -> None:
    """Compute values that only depend on parameters and buffers once, and keep them as buffers, in place.

    Values that also depend on sizes are kept if they are the same for these batches of different length, such as the
    mask of shifted windows. Equal expressions share one buffer. Assertions are removed: they pass on all images or
    none.
    """
    interpreter = fx.Interpreter(captured)
    values = _made_by_sizes(captured, batches)
    for node in list(captured.graph.nodes):
        if is_assertion(node):
            captured.graph.erase_node(node)
        elif node not in values and _is_constant(node, values):
            values[node] = _value(interpreter, node, values)
    kept = _Kept(captured, values)
    for node, value in values.items():
        if node.op != "get_attr" and any(user not in values for user in node.users):
            kept.put(node, value)
    for node in reversed(captured.graph.nodes):
        if node in values and not node.users:
            captured.graph.erase_node(node)
    captured.recompile()


def known_by_sizes(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes whose values depend on sizes, types and parameters, but not on values of images."""
    known: set[fx.Node] = set()
    for node in nodes:
        if node.op == "get_attr":
            known.add(node)
        elif node.op in ("call_function", "call_method"):
            name = node.args[1] if node.target is getattr else call_name(node)
            inputs = node.all_input_nodes
            # a tensor that only gives its type and size comes first; a fill value must also be known
            read = inputs[1:] if name in _LIKE_ANOTHER else inputs
            if name in _SIZES or (known.issuperset(read) and (inputs or name in _CREATIONS)):
                known.add(node)
    return known


class _ValuesBySizes(fx.Interpreter):
    """Runs a graph and keeps the tensors that only depend on sizes."""

    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__(captured)
        self._wanted = known_by_sizes(captured.graph.nodes)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._wanted and n.op != "get_attr" and isinstance(result, Tensor):
            self.values[n] = result
        return result


@torch.no_grad()
def _made_by_sizes(captured: fx.GraphModule, batches: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """The tensors that only depend on sizes and that are the same for all of these batches."""
    known = known_by_sizes(captured.graph.nodes)
    if not any(call_name(node) in _CREATIONS for node in known):
        return {}
    found = [_ValuesBySizes(captured) for _ in batches]
    for interpreter, images in zip(found, batches, strict=True):
        interpreter.run(images.clone())
    first, *others = (interpreter.values for interpreter in found)
    return {node: value for node, value in first.items() if all(torch.equal(value, other[node]) for other in others)}


def _is_constant(node: fx.Node, constants: Any) -> bool:
    """True if a node only reads parameters, buffers and these constants."""
    if node.op == "get_attr":
        return True
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    # a parametrization is a module without inputs
    inputs = node.all_input_nodes
    return (bool(inputs) or node.op == "call_module") and all(source in constants for source in inputs)


@torch.no_grad()
def _value(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return getattr(interpreter, node.op)(node.target, args, kwargs)


class _Kept:
    """The buffers of computed values."""

    def __init__(self, captured: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
        self._captured, self._values = captured, values
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._known: dict[fx.Node, int] = {}

    def put(self, node: fx.Node, value: Any) -> None:
        """Let all readers of a node read its value."""
        if not isinstance(value, Tensor):
            for user in list(node.users):
                replace_argument(user, node, value)
            return
        path = self._paths.setdefault(self._number(node), f"{CONSTANTS}.{node.name}")
        if path == f"{CONSTANTS}.{node.name}":
            if not hasattr(self._captured, CONSTANTS):
                self._captured.add_submodule(CONSTANTS, nn.Module())
            self._captured.get_submodule(CONSTANTS).register_buffer(node.name, value.detach().clone())
        with self._captured.graph.inserting_before(node):
            constant = self._captured.graph.get_attr(path)
        constant.meta |= node.meta | {"operator": "constant"}
        node.replace_all_uses_with(constant)

    def _number(self, node: fx.Node) -> int:
        """A number that is equal for nodes that compute the same from the same constants."""
        if node not in self._known:
            expression = str(node.target) if node.op == "get_attr" else node.name
            if node in self._values:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._number)
                expression = f"{node.op} {node.target} {args} {kwargs}"
            self._known[node] = self._numbers.setdefault(expression, len(self._numbers))
        return self._known[node]


def replace_argument(user: fx.Node, node: fx.Node, value: Any) -> None:
    """Let one node read a value instead of another node."""

    def replaced(argument: fx.Node) -> Any:
        return value if argument is node else argument

    user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), replaced)
