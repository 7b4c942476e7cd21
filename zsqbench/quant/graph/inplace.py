"""Changes in place become new tensors: each tensor of a graph then has one value, whoever reads it and when."""

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.operators import names


def with_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of a tensor with other values at an index."""
    changed = tensor.clone()
    changed[index] = value
    return changed


_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.setitem: with_item,
}

# These give the very tensor that they are given, and the second kind a view of it.
_SAME = names("alphadropout contiguous detach dropout dropout1d dropout2d float identity")
_VIEWS = names(
    "chunk expand expandas flatten getitem movedim narrow permute reshape select split squeeze swapaxes swapdims "
    "transpose unbind unflatten unsqueeze view viewas"
)


def make_out_of_place(captured: fx.GraphModule) -> None:
    """Let each operator that changes its input make a new tensor, which all later readers of the input read.

    Raises ZSQBenchError where a tensor changes through a view of it and is read afterwards.
    """
    order = {node: place for place, node in enumerate(captured.graph.nodes)}
    for node in list(captured.graph.nodes):
        if _is_in_place(captured, node):
            changed = node.args[0] if node.args else next(iter(node.kwargs.values()))
            _as_new(captured, node)
            if isinstance(changed, fx.Node):
                for alias in _aliases(changed, node, order):
                    alias.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)  # type: ignore[misc]


def _is_in_place(captured: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(captured.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return node.target in _OPERATORS or _inplace_argument(node) or _new_function(node) is not None
    return node.op == "call_method" and _new_method(str(node.target)) is not None


def _as_new(captured: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "call_module":
        captured.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        node.target = _new_method(str(node.target)) or node.target
    elif node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    elif _inplace_argument(node):
        place = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            node.args = (*node.args[:place], False, *node.args[place + 1 :])
    else:
        node.target = _new_function(node) or node.target


def _inplace_argument(node: fx.Node) -> bool:
    """True if the function of a node is told to work in place."""
    if not inspect.isfunction(node.target):
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except TypeError:
        return False
    return bound.arguments.get("inplace") is True


def _new_function(node: fx.Node) -> Callable[..., Any] | None:
    """The function without the underscore that torch puts behind the names of those that work in place."""
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    for home in (torch, functional):
        if getattr(home, name, None) is node.target:
            return getattr(home, name.removesuffix("_"), None)
    return None


def _new_method(name: str) -> str | None:
    new = name.removesuffix("_")
    return (
        new if new != name and not name.endswith("__") and name != "requires_grad_" and hasattr(Tensor, new) else None
    )


def _aliases(changed: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """All names of the changed tensor. Raises ZSQBenchError where it is read by a view later."""
    names = [changed]
    while names[-1].meta["operator"] in _SAME:
        names.append(names[-1].all_input_nodes[0])
    if names[-1].meta["operator"] in _VIEWS and _is_read_after(names[-1].all_input_nodes[0], node, order):
        _refuse(node)
    pending = [names[-1]]
    while pending:
        name = pending.pop()
        yield name
        for user in name.users:
            if user is node or order[user] > order[node]:
                continue
            if user.meta["operator"] in _SAME:
                pending.append(user)
            elif user.meta["operator"] in _VIEWS and _is_read_after(user, node, order):
                _refuse(node)


def _is_read_after(tensor: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    return any(order[user] > order[node] for user in tensor.users)


def _refuse(node: fx.Node) -> None:
    where = f" in module {node.meta['called_in']!r}" if node.meta["called_in"] else ""
    raise ZSQBenchError(
        f"{node.meta['operator']!r}{where} changes a tensor in place of which a view is read afterwards; "
        "write it out of place (x = x + y in place of x += y)"
    )
