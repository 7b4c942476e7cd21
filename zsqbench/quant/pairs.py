"""Pairs of layers that alone share the channels of one tensor, for methods that rescale them (equalization)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zsqbench.quant.fake_quant import ActivationQuantizer
from zsqbench.quant.fold import called_once
from zsqbench.quant.graph import ACTIVATIONS, is_layer, operator, repeats_values, tensor_name

# What may stand between, besides one activation function and the quantizer: it keeps channels apart, and zero zero.
_BETWEEN = frozenset({"clone", "contiguous", "detach", "dropout", "dropout2d", "identity", "pad", "zeropad2d"})
BOUNDS = "bounds"
"""Name of the submodule that holds the bounded activation functions that `free_bounds` puts in."""


@dataclass(frozen=True)
class Pair:
    """A layer, the activation function and the quantizer behind it, and the layer that alone reads the result."""

    first: str
    """Path of the layer whose output channels are shared."""
    second: str
    """Path of the layer whose input channels they are."""
    activation: fx.Node | None
    quantizer: ActivationQuantizer | None

    @property
    def operator(self) -> str:
        """The activation function between, as in `zsqbench.quant.graph.ACTIVATIONS`; `identity` where there is none."""
        return "identity" if self.activation is None else operator(self.activation)


class BoundedReLU(nn.Module):
    """ReLU6 whose bound is a buffer, so that equalization can move it."""

    bound: Tensor

    def __init__(self, bound: float = 6.0) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor(bound))

    def forward(self, x: Tensor) -> Tensor:
        """X cut off at zero and at the bound."""
        return torch.minimum(functional.relu(x), self.bound)


def layer_pairs(student: fx.GraphModule) -> list[Pair]:
    """The pairs of a prepared student, in execution order, of layers that are called once each."""
    starts = [node for node in student.graph.nodes if is_layer(node) and called_once(student, node)]
    return [pair for node in starts for pair in _pair_from(student, node)]


def free_bounds(student: fx.GraphModule) -> None:
    """Replace each ReLU6 between the layers of a pair by a `BoundedReLU`, in place."""
    for pair in layer_pairs(student):
        if pair.activation is None or pair.operator != "relu6":
            continue
        path = f"{BOUNDS}.{tensor_name(pair.activation)}"
        student.add_submodule(path, BoundedReLU().to(next(student.parameters()).device))
        with student.graph.inserting_after(pair.activation):
            bounded = student.graph.call_module(path, tuple(pair.activation.all_input_nodes))
        bounded.meta |= pair.activation.meta
        pair.activation.replace_all_uses_with(bounded)
        student.graph.erase_node(pair.activation)
    student.recompile()


def _pair_from(student: fx.GraphModule, first: fx.Node) -> Iterator[Pair]:
    node, activation, quantizer = first, None, None
    while len(node.users) == 1:
        (node,) = node.users
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            quantizer = module
        elif is_layer(node):
            if called_once(student, node) and operator(node) == operator(first):
                yield Pair(str(first.target), str(node.target), activation, quantizer)
            return
        elif operator(node) in ACTIVATIONS and activation is None and len(node.all_input_nodes) == 1:
            activation = node
        elif operator(node) not in _BETWEEN or not repeats_values(node):
            return
