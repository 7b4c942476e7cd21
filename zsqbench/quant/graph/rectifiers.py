"""ReLU and ReLU6 in other forms: clamp(min=0), hardtanh(0, 6), threshold(0, 0), maximum(x, 0) and similar."""

import math
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from zsqbench.quant.graph.operators import operator

# The arguments behind the input that define the operator, and torch's defaults for them.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "clamp": {"min": None, "max": None},
    "clip": {"min": None, "max": None},
    "clampmin": {"min": None},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "threshold": {"threshold": None, "value": None},
}
_BOUNDED = {(0, None): "relu", (0, math.inf): "relu", (0, 6): "relu6"}
_ZEROS = frozenset({"newzeros", "zeros", "zeroslike"})
_LIMITED = frozenset({"hardsigmoid", "relu6", "sigmoid", "softsign", "tanh"})


def rectifier(captured: fx.GraphModule, node: fx.Node, kind: str) -> str | None:
    """`relu` or `relu6` if an operator with another name computes it. None: it computes something else."""
    if kind not in _ARGUMENTS:
        return None
    given = _arguments(captured, node, kind)
    if any(isinstance(value, fx.Node) for value in given):
        return None
    if kind == "threshold":
        return "relu" if given == (0, 0) else None
    return _BOUNDED.get((given[0], given[1] if len(given) > 1 else None))


def is_bounded(captured: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    """True if the output of an activation function of this kind is bounded on both sides for any input."""
    if kind not in ("clamp", "clip", "hardtanh"):
        return kind in _LIMITED
    limits = _arguments(captured, node, kind)
    return all(isinstance(limit, fx.Node) or (limit is not None and math.isfinite(limit)) for limit in limits)


def rectify_maxima(captured: fx.GraphModule) -> None:
    """Replace each maximum of a tensor and of zeros that do not broadcast it by ReLU, in place."""
    for node in list(captured.graph.nodes):
        values = [*node.args, *node.kwargs.values()] if operator(node) in ("max", "maximum") else []
        if len(values) != 2 or not all(isinstance(value, fx.Node) for value in values):  # noqa: PLR2004
            continue
        rest = [value for value in values if not _is_zero(captured, value)]
        if len(rest) == 1 and rest[0].meta["shape"] == node.meta["shape"] is not None:
            with captured.graph.inserting_after(node):
                relu = captured.graph.call_function(functional.relu, (rest[0],))
            relu.meta |= node.meta | {"operator": "relu"}
            node.replace_all_uses_with(relu)
            _erase_unread(captured.graph, node)
    captured.recompile()


def _erase_unread(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node without readers, and the nodes that were only computed for it: the zeros and their shape."""
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        if not source.users and source.op != "placeholder":
            _erase_unread(graph, source)


def _arguments(captured: fx.GraphModule, node: fx.Node, kind: str) -> tuple[Any, ...]:
    names = _ARGUMENTS[kind]
    if node.op == "call_module":
        module = captured.get_submodule(str(node.target))
        return tuple(getattr(module, name) for name in names)
    positional = node.args[0 if "input" in node.kwargs else 1 :]
    found = names | dict(zip(names, positional, strict=False)) | node.kwargs
    return tuple(found[name] for name in names)


def _is_zero(captured: fx.GraphModule, node: fx.Node) -> bool:
    """True if a node is a constant that is zero everywhere. A parameter does not count, because it may be trained."""
    if node.op != "get_attr":
        return operator(node) in _ZEROS
    path, _, name = str(node.target).rpartition(".")
    value = getattr(captured.get_submodule(path), name)
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.count_nonzero()
