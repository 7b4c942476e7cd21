"""Replace changes in place by new tensors. Each tensor of a graph then has the same value for all readers."""

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
    """A copy of a tensor with new values at an index."""
    changed = tensor.clone()
    changed[index] = value
    return changed


def with_values(tensor: Tensor, values: Tensor | float) -> Tensor:
    """These values, or one value everywhere, in the shape and the type of a tensor."""
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device).expand_as(tensor).contiguous()


_NEW: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.setitem: with_item,
    "copy_": with_values,
    "fill_": with_values,
    "zero_": torch.zeros_like,
}
"""Functions that make a new tensor, for operators and methods that change a tensor."""

# These return their input itself. The second kind returns a view of it.
_SAME = names("alphadropout contiguous detach dropout dropout1d dropout2d float identity")
_VIEWS = names(
    "chunk expand expandas flatten getitem movedim narrow permute reshape select split squeeze swapaxes swapdims "
    "transpose unbind unflatten unsqueeze view viewas"
)


def make_out_of_place(captured: fx.GraphModule) -> None:
    """Let each operator that changes a tensor make a new tensor for all later readers of the old tensor.

    A changed slice is written back. Raises ZSQBenchError if a tensor changes through another view and is read
    afterwards, or if an operator has no other form.
    """
    order: dict[fx.Node, float] = {node: place for place, node in enumerate(captured.graph.nodes)}
    for node in list(captured.graph.nodes):
        changed, new = _changed(captured, node), node
        if changed is None:
            continue
        _as_new(captured, node)
        if _is_slice(changed) and _is_read_after(changed.all_input_nodes[0], node, order):
            _let_later_ones_read(node, changed, order)
            new, changed = _written_back(captured, changed, node, order), changed.all_input_nodes[0]
        for alias in _aliases(changed, new, order):
            _let_later_ones_read(new, alias, order)


def _let_later_ones_read(new: fx.Node, former: fx.Node, order: dict[fx.Node, float]) -> None:
    former.replace_all_uses_with(new, lambda user: order[user] > order[new])


def _is_slice(node: fx.Node) -> bool:
    """True for a slice of a tensor. A number may also be the index of a tensor among several."""
    return node.meta["operator"] == "getitem" and isinstance(node.args[1], slice | tuple)


def _written_back(captured: fx.GraphModule, view: fx.Node, node: fx.Node, order: dict[fx.Node, float]) -> fx.Node:
    """The tensor with a slice that has changed to the result of a node, and that slice."""
    with captured.graph.inserting_after(node):
        whole = captured.graph.call_function(with_item, (view.args[0], view.args[1], node))
    whole.meta |= {**node.meta, "operator": "setitem"}
    order[whole] = order[node] + 0.5
    return whole


def _changed(captured: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The tensor that a node changes. None: it changes no tensor."""
    into = node.kwargs.get("out")
    if isinstance(into, fx.Node):
        return into
    if node.op == "call_module":
        changes = bool(getattr(captured.get_submodule(str(node.target)), "inplace", False))
    elif node.op == "call_function":
        changes = node.target in _NEW or _inplace_argument(node) or _new_function(node) is not None
    else:
        changes = node.op == "call_method" and _is_in_place(str(node.target))
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if changes and isinstance(first, fx.Node) else None


def _as_new(captured: fx.GraphModule, node: fx.Node) -> None:
    if "out" in node.kwargs:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
    elif node.op == "call_module":
        captured.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.target in _NEW:
        node.op, node.target = "call_function", _NEW[node.target]
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
        if not hasattr(Tensor, node.target):
            _refuse(node, "changes a tensor in place and has no other form; compute a new tensor")
    elif not _inplace_argument(node):
        node.target = _new_function(node) or node.target
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        place = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
        node.args = (*node.args[:place], False, *node.args[place + 1 :])


def _inplace_argument(node: fx.Node) -> bool:
    """True if the function of a node has the option to work in place."""
    if not inspect.isfunction(node.target):
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except TypeError:
        return False
    return bound.arguments.get("inplace") is True


def _new_function(node: fx.Node) -> Callable[..., Any] | None:
    """The function without the underscore that torch adds to names of functions that work in place."""
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    homes = (home for home in (torch, functional) if getattr(home, name, None) is node.target)
    return next((getattr(home, name.removesuffix("_"), None) for home in homes), None)


def _is_in_place(method: str) -> bool:
    """True if a method changes its tensor. The underscore behind its name says so."""
    changes = method.endswith("_") and not method.endswith("__") and hasattr(Tensor, method)
    return changes and method not in ("requires_grad_", "rename_")


def _aliases(changed: fx.Node, node: fx.Node, order: dict[fx.Node, float]) -> Iterator[fx.Node]:
    """All names of the changed tensor. Raises ZSQBenchError if a view of it is read later."""
    names = [changed]
    while names[-1].meta["operator"] in _SAME:
        names.append(names[-1].all_input_nodes[0])
    if names[-1].meta["operator"] in _VIEWS and _is_read_after(names[-1].all_input_nodes[0], node, order):
        _refuse(node, _THROUGH_A_VIEW)
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
                _refuse(node, _THROUGH_A_VIEW)


def _is_read_after(tensor: fx.Node, node: fx.Node, order: dict[fx.Node, float]) -> bool:
    return any(order[user] > order[node] for user in tensor.users)


_THROUGH_A_VIEW = (
    "changes a tensor in place of which a view is read afterwards; write it out of place (x = x + y in place of x += y)"
)


def _refuse(node: fx.Node, why: str) -> None:
    where = f" in module {node.meta['called_in']!r}" if node.meta["called_in"] else ""
    raise ZSQBenchError(f"{node.meta['operator']!r}{where} {why}")
