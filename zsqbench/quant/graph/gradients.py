"""Keep gradients finite if a student takes the root of a zero that comes from rounding.

Networks keep roots away from zero (x.clamp(min=1e-6) in generalised-mean pooling, x + 1e-8 before a square root). A
grid rounds such small values to zero. The root is then zero, but its slope is infinite. Multiplied by the zero slope of
the operator before it, the gradient is not a number.
"""

from typing import Any

import torch
from torch import Tensor, fx

from zsqbench.quant.graph.operators import operator

_POWERS = frozenset({"pow", "floatpower"})


def keep_gradients_finite(student: fx.GraphModule) -> None:
    """Let no infinite gradient pass into the inputs of roots and powers, in place. Values do not change."""
    for node in list(student.graph.nodes):
        if node.op == "output" or not node.args or not isinstance(node.args[0], fx.Node) or not _has_steep_start(node):
            continue
        base = node.args[0]
        if not base.meta["carries_values"]:  # a number made of sizes, as in (channels // heads) ** -0.5
            continue
        with student.graph.inserting_before(node):
            kept = student.graph.call_function(finite_gradient, (base,))
        kept.meta |= base.meta | {"operator": "identity"}
        node.args = (kept, *node.args[1:])
    student.recompile()


def finite_gradient(x: Tensor) -> Tensor:
    """X, with a zero gradient for each element whose gradient is infinite or not a number."""
    gated: Tensor = _FiniteGradient.apply(x) if torch.is_grad_enabled() and x.requires_grad else x
    return gated


def _has_steep_start(node: fx.Node) -> bool:
    if operator(node) not in _POWERS:
        return operator(node) == "sqrt"
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return not isinstance(exponent, int | float) or exponent < 1


class _FiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return gradients[0].nan_to_num(0.0, posinf=0.0, neginf=0.0)
