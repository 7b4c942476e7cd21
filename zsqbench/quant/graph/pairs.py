"""Pairs of layers that share channels with no other layer, for methods that rescale them (equalization)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    called_once,
    is_layer,
    operator,
    repeats_values,
    tensor_name,
    value_users,
)
from zsqbench.quant.grids.fake_quant import ActivationQuantizer

# Operators that may be between, besides one activation function and the quantizer. They do not mix channels, and keep
# zero.
_BETWEEN = frozenset(
    ["clone", "contiguous", "detach", "dropout", "dropout1d", "dropout2d", "identity", "pad", "zeropad1d", "zeropad2d"],
)
_ON_IMAGES = frozenset({"conv2d", "convtranspose2d"})
"""Layers whose channels stay channels from one to the next."""
BOUNDS = "bounds"
"""Name of the submodule that holds the bounded activation functions that `free_bounds` puts in."""


@dataclass(frozen=True)
class Pair:
    """A layer, the activation function and the quantizer behind it, and the layer that is the only reader."""

    first: str
    """Path of the layer whose output channels are shared."""
    second: str
    """Path of the layer that has these as input channels."""
    activation: fx.Node | None
    quantizer: ActivationQuantizer | None
    padded: bool
    """True if the second layer also reads zeros from around the tensor."""
    uneven: bool
    """True if the second layer maps no constant to a constant, such as a transposed convolution with a stride."""
    has_own_channels: bool = True
    """True if the second layer reads exactly the channels of the first layer, and none that padding adds."""

    @property
    def operator(self) -> str:
        """The activation function between, as in `zsqbench.quant.graph.ACTIVATIONS`. `identity`: there is none."""
        return "identity" if self.activation is None else operator(self.activation)


class BoundedReLU(nn.Module):
    """ReLU6 with its bound as a buffer, so that equalization can move it. One bound, or one for each channel."""

    bound: Tensor

    def __init__(self, bound: float = 6.0, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("bound", torch.full(shape, bound))

    def forward(self, x: Tensor) -> Tensor:
        """X clipped at zero and at the bound."""
        return torch.minimum(functional.relu(x), self.bound)


def layer_pairs(student: fx.GraphModule) -> list[Pair]:
    """The pairs of a prepared student, in execution order, of layers that are called once each."""
    return [pair for pair in _candidates(student) if pair.has_own_channels]


def unpaired_layers(student: fx.GraphModule) -> list[str]:
    """Layers that are in no pair because several branches call them, or channels are padded behind them; with why."""
    calls = Counter(str(node.target) for node in student.graph.nodes if is_layer(node))
    shared = [f"{path} (called {count} times)" for path, count in calls.items() if count > 1]
    others = [pair for pair in _candidates(student) if not pair.has_own_channels]
    return shared + [f"{pair.first} to {pair.second} (channels are padded between them)" for pair in others]


def free_bounds(student: fx.GraphModule, *, per_channel: bool = False) -> None:
    """Replace each ReLU6 between the layers of a pair by a `BoundedReLU`, in place."""
    for pair, activation in _relu6_pairs(student):
        path = f"{BOUNDS}.{tensor_name(activation)}"
        weight: Any = student.get_submodule(pair.first).weight
        shape = (len(weight),) + (1,) * (weight.dim() - 2) if per_channel else ()  # channels of a linear layer are last
        student.add_submodule(path, BoundedReLU(shape=shape).to(weight.device))
        with student.graph.inserting_after(activation):
            bounded = student.graph.call_module(path, tuple(activation.all_input_nodes))
        _replace(student, activation, bounded, "relu6")
    student.recompile()


def drop_bounds(student: fx.GraphModule) -> list[str]:
    """Replace each ReLU6 between the layers of a pair by ReLU, in place. Returns the paths of the first layers."""
    found = _relu6_pairs(student)
    for _, activation in found:
        with student.graph.inserting_after(activation):
            unbounded = student.graph.call_function(functional.relu, tuple(activation.all_input_nodes))
        _replace(student, activation, unbounded, "relu")
    student.recompile()
    return [pair.first for pair, _ in found]


def _relu6_pairs(student: fx.GraphModule) -> list[tuple[Pair, fx.Node]]:
    pairs = layer_pairs(student)
    return [(pair, pair.activation) for pair in pairs if pair.activation is not None and pair.operator == "relu6"]


def _replace(student: fx.GraphModule, node: fx.Node, by: fx.Node, kind: str) -> None:
    by.meta |= node.meta | {"operator": kind}
    node.replace_all_uses_with(by)
    student.graph.erase_node(node)


def _candidates(student: fx.GraphModule) -> list[Pair]:
    starts = [node for node in student.graph.nodes if is_layer(node) and called_once(student, node)]
    return [pair for node in starts for pair in _pair_from(student, node)]


def _pair_from(student: fx.GraphModule, first: fx.Node) -> Iterator[Pair]:
    node, activation, quantizer, padded, own_channels = first, None, None, False, True
    while len(users := value_users(node)) == 1:
        (node,) = users
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            quantizer = module
        elif is_layer(node):
            alike = operator(node) == operator(first) or {operator(node), operator(first)} == _ON_IMAGES
            if called_once(student, node) and alike:
                padded, uneven = padded or _pads(module), _is_uneven(module)
                yield Pair(str(first.target), str(node.target), activation, quantizer, padded, uneven, own_channels)
            return
        elif operator(node) in ACTIVATIONS and activation is None and _reads_one(node):
            activation = node
        elif operator(node) in _BETWEEN and repeats_values(node):
            padded = padded or "pad" in operator(node)
            own_channels = own_channels and not _pads_channels(node, module, linear=operator(first) == "linear")
        else:
            return


def _reads_one(node: fx.Node) -> bool:
    """True if a node uses one tensor, besides parameters such as slopes."""
    return sum(source.op != "get_attr" for source in node.all_input_nodes) == 1


def _pads(layer: Any) -> bool:
    if isinstance(layer, nn.ConvTranspose2d):  # along borders a part of its kernel has no input
        return max(layer.kernel_size) > 1
    return (
        getattr(layer, "padding_mode", None) == "zeros" and layer.padding != "valid" and any(map(bool, layer.padding))
    )


def _is_uneven(layer: Any) -> bool:
    return isinstance(layer, nn.ConvTranspose2d) and max(layer.stride) > 1


def _pads_channels(node: fx.Node, module: Any, *, linear: bool) -> bool:
    """True if a node adds or removes channels. Channels of a linear layer are last."""
    if "pad" not in operator(node):
        return False
    given = (*node.args[1:], *node.kwargs.values()) if module is None else (module.padding,)
    amounts: Any = next(value for value in given if isinstance(value, (list, tuple)))  # from the last dimension on
    start = 0 if linear else 2 * (len(node.meta["shape"]) - 2)
    return any(amount != 0 for amount in amounts[start : start + 2])
