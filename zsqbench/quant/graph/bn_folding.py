"""Fold batch normalisation into the layer before it, by the order of the graph, not of registration."""

from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.graph.operators import (
    MULTIPLICATIONS,
    called_once,
    is_batch_norm,
    is_layer,
    operator,
    value_users,
)
from zsqbench.quant.grids.transposed import TransposedConv2d

Layer = nn.Conv1d | nn.Conv2d | TransposedConv2d | nn.Linear

FOLDED = "folded_batch_norms"
"""Key of a graph's `meta` under which `fold_bn` keeps the batch normalisation folded into each layer, by its path."""

UNFOLDED = "unfolded_batch_norms"
"""Key under which `fold_bn` keeps why each of the others is not folded, by its path."""

_AFFINE = MULTIPLICATIONS | {"add", "div", "sub", "truediv"}
_MATRIX = 2


def fold_bn(captured: fx.GraphModule) -> None:
    """Fold each batch normalisation that is the only reader of a convolution or linear layer into it, in place.

    Constant gains and offsets, one for each channel or one for all, are also folded, because they are a batch
    normalisation with fixed statistics. The others stay, and `why_unfolded` says why.
    """
    for node in list(captured.graph.nodes):
        if is_batch_norm(node):
            obstacle = why_unfolded(captured, node)
            if obstacle is None:
                _fold_norm(captured, node)
            else:
                captured.meta.setdefault(UNFOLDED, {})[str(node.target)] = obstacle
        elif operator(node) in _AFFINE:
            _fold_constant(captured, node)
    captured.recompile()


def why_unfolded(captured: fx.GraphModule, node: fx.Node) -> str | None:
    """Why a batch normalisation cannot be folded into the layer before it. None: it can."""
    before = node.all_input_nodes[0]
    norm: Any = captured.get_submodule(str(node.target))
    if not is_layer(before):
        return f"it reads {operator(before)}, not a convolution or linear layer"
    matrix = len(before.meta["shape"]) == _MATRIX
    obstacles = {
        "it has no running statistics": norm.running_mean is None,
        "the layer before it also has other readers": value_users(before) != [node],
        "the layer before it is called several times": not called_once(captured, before),
        "it is called several times": not called_once(captured, node),
        "its channels are not those of the layer's output": operator(before) == "linear" and not matrix,
    }
    return next((text for text, is_there in obstacles.items() if is_there), None)


@torch.no_grad()
def folded(layer: Layer, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the folded layer: w s and (b - mean) s + beta, with s = gamma / sqrt(var + eps).

    `norm` is any of torch's batch normalisations, or torchvision's FrozenBatchNorm2d. Output channels are axis 0 of the
    weight, also in grouped, depthwise and transposed (`TransposedConv2d`) convolutions. Computed in float64.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch normalisation without running statistics cannot be folded")
    gain = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = -mean.double() if layer.bias is None else layer.bias.double() - mean.double()
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double() * gain.view(-1, *[1] * (layer.weight.dim() - 1))
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def _fold_norm(captured: fx.GraphModule, node: fx.Node) -> None:
    before = node.all_input_nodes[0]
    norm = captured.get_submodule(str(node.target))
    _give(captured, node, *folded(_layer(captured, before), norm))
    captured.delete_submodule(str(node.target))
    captured.meta.setdefault(FOLDED, {})[str(before.target)] = norm


@torch.no_grad()
def _fold_constant(captured: fx.GraphModule, node: fx.Node) -> None:
    """Fold a gain or an offset into the layer whose only reader it is, and into the norm folded into this layer."""
    found = _gain_and_offset(captured, node)
    if found is None:
        return
    before, gain, offset = found
    layer = _layer(captured, before)
    one = nn.BatchNorm2d(len(gain), eps=0.0, dtype=torch.float64)
    one.weight, one.bias = nn.Parameter(gain), nn.Parameter(offset)
    weight, bias = folded(layer, one)
    norms = captured.meta.get(FOLDED, {})
    norm = norms.get(str(before.target))
    if norm is not None:
        norms[str(before.target)] = _moved(norm, gain, offset)
    _give(captured, node, weight, bias)


def _gain_and_offset(captured: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Tensor, Tensor] | None:
    """The layer that a node scales or shifts by constants, with gain and offset [C] in float64. None: another node."""
    if node.kwargs or len(node.args) != 2:  # noqa: PLR2004
        return None
    turned = not (isinstance(node.args[0], fx.Node) and is_layer(node.args[0]))
    before, other = node.args[::-1] if turned else node.args
    if not (isinstance(before, fx.Node) and is_layer(before) and called_once(captured, before)):
        return None
    constant = _per_channel(captured, before, other) if value_users(before) == [node] else None
    return None if constant is None else _affine(operator(node), before, constant, turned=turned)


def _affine(kind: str, before: fx.Node, constant: Tensor, *, turned: bool) -> tuple[fx.Node, Tensor, Tensor] | None:
    """Gain and offset of an operator, by its name. `turned`: the constant comes first."""
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    if kind in MULTIPLICATIONS:
        return before, constant, zero
    if kind == "add":
        return before, one, constant
    if kind == "sub":
        return (before, -one, constant) if turned else (before, one, -constant)
    return None if turned or not constant.all() else (before, 1 / constant, zero)


def _per_channel(captured: fx.GraphModule, before: fx.Node, other: Any) -> Tensor | None:
    """A constant as one number [C] for each output channel of a layer. None: another value."""
    if isinstance(other, fx.Node):
        if other.op != "get_attr":
            return None
        other = attrgetter(str(other.target))(captured)
    elif isinstance(other, bool) or not isinstance(other, int | float):
        return None
    values = torch.as_tensor(other).double()
    rank = len(before.meta["shape"])
    axis = rank - 1 if operator(before) == "linear" else 1
    if values.dim() > rank:
        return None
    channels = before.meta["shape"][axis]
    shape = (1,) * (rank - values.dim()) + tuple(values.shape)
    broadcast = all(size in {1, channels if place == axis else 1} for place, size in enumerate(shape))
    return values.flatten().expand(channels).clone() if broadcast and values.isfinite().all() else None


def _moved(norm: Any, gain: Tensor, offset: Tensor) -> nn.Module:
    """A copy of a norm whose output is scaled and shifted."""
    moved = nn.BatchNorm2d(len(gain), eps=norm.eps)
    moved.running_mean, moved.running_var = norm.running_mean, norm.running_var
    weight = gain if norm.weight is None else norm.weight * gain
    bias = offset if norm.bias is None else norm.bias * gain + offset
    dtype = norm.running_mean.dtype
    moved.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    moved.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return moved


def _give(captured: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Replace a node by new weight and bias of the layer before it."""
    before = node.all_input_nodes[0]
    layer = _layer(captured, before)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    node.replace_all_uses_with(before)
    captured.graph.erase_node(node)


def _layer(captured: fx.GraphModule, node: fx.Node) -> Layer:
    return cast("Layer", captured.get_submodule(str(node.target)))
