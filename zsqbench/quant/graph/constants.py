"""Constants of a graph: values that depend on parameters and buffers alone, and on no image."""

from typing import Any

import torch
from torch import Tensor, fx, nn

CONSTANTS = "constants"
"""Name of the submodule that holds the values that `fold_constants` computed."""


def fold_constants(captured: fx.GraphModule) -> None:
    """Compute once what depends on parameters and buffers alone, and keep the results as buffers, in place.

    Equal expressions share one buffer. Assertions, which pass on all images or on none, go.
    """
    interpreter = fx.Interpreter(captured)
    values: dict[fx.Node, Any] = {}
    for node in list(captured.graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:  # noqa: SLF001 - that is its public name
            captured.graph.erase_node(node)
        elif is_constant(node, values):
            values[node] = _value(interpreter, node, values)
    kept = _Kept(captured)
    for node, value in values.items():
        if node.op != "get_attr" and any(user not in values for user in node.users):
            kept.put(node, value)
    for node in reversed(values):
        if not node.users:
            captured.graph.erase_node(node)
    captured.recompile()


def is_constant(node: fx.Node, constants: Any) -> bool:
    """True if a node reads parameters and buffers, or what is among these constants, and nothing else."""
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
    """The buffers that stand for computed values."""

    def __init__(self, captured: fx.GraphModule) -> None:
        self._captured = captured
        self._paths: dict[str, str] = {}

    def put(self, node: fx.Node, value: Any) -> None:
        """Let all that read a node read its value."""
        if not isinstance(value, Tensor):
            for user in list(node.users):
                _replace_argument(user, node, value)
            return
        path = self._paths.setdefault(_expression(node), f"{CONSTANTS}.{node.name}")
        if path == f"{CONSTANTS}.{node.name}":
            if not hasattr(self._captured, CONSTANTS):
                self._captured.add_submodule(CONSTANTS, nn.Module())
            self._captured.get_submodule(CONSTANTS).register_buffer(node.name, value.detach().clone())
        with self._captured.graph.inserting_before(node):
            constant = self._captured.graph.get_attr(path)
        constant.meta |= node.meta | {"operator": "constant"}
        node.replace_all_uses_with(constant)


def _expression(node: fx.Node) -> str:
    """A text that two nodes share if they compute the same from the same."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _expression)
    return f"{node.op} {node.target} {args} {kwargs}"


def _replace_argument(user: fx.Node, node: fx.Node, value: Any) -> None:
    def replaced(argument: fx.Node) -> Any:
        return value if argument is node else argument

    user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), replaced)
