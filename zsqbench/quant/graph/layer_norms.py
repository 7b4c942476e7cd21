"""Find layer normalisations that only linear layers read, and fold their gain and offset into those layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn

from zsqbench.quant.graph.operators import (
    NO_OPERATIONS,
    SELECTIONS,
    called_once,
    is_layer,
    names,
    operator,
    repeats_values,
    value_users,
)
from zsqbench.quant.grids.fake_quant import ActivationQuantizer

_RESHAPES = names("flatten ravel reshape unflatten view viewas")
_ALONG_OTHER_AXES = names("expand pad roll squeeze unsqueeze")
"""Moves that keep channels on the last axis as long as this keeps its size."""


@dataclass(frozen=True)
class NormedLayers:
    """A layer normalisation over the last axis, with the linear layers that are its only readers."""

    norm: str
    """Its path."""
    layers: tuple[str, ...]
    """Paths of the linear layers. Each is called once."""
    quantizers: tuple[ActivationQuantizer, ...]
    """The quantizers between them."""


def normed_layers(captured: fx.GraphModule) -> list[NormedLayers]:
    """Each layer normalisation whose only readers are linear layers that read every channel, in execution order.

    `captured` may be a student. A normalisation or a layer that is called twice is left out.
    """
    found = []
    for node in captured.graph.nodes:
        if operator(node) != "layernorm" or node.op != "call_module" or not called_once(captured, node):
            continue
        norm = cast("nn.LayerNorm", captured.get_submodule(str(node.target)))
        ends = list(_ends(node, norm.normalized_shape[-1])) if len(norm.normalized_shape) == 1 else []
        layers = [str(end.target) for end in ends if end is not None and called_once(captured, end)]
        if ends and len(layers) == len(ends):
            found.append(NormedLayers(str(node.target), tuple(layers), tuple(_quantizers(captured, node))))
    return found


@torch.no_grad()
def fold_layer_norms(captured: fx.GraphModule) -> None:
    """Fold gain and offset of each layer normalisation of `normed_layers` into the layers, in place.

    W (g x + o) + b = (W g) x + (W o + b). The normalisation stays, with a gain of 1 and an offset of 0. Computed in
    float64.
    """
    for each in normed_layers(captured):
        norm = cast("nn.LayerNorm", captured.get_submodule(each.norm))
        if not norm.elementwise_affine:
            continue
        for path in each.layers:
            layer = cast("nn.Linear", captured.get_submodule(path))
            weight, dtype = layer.weight.double(), layer.weight.dtype
            if norm.bias is not None:
                moved = weight @ norm.bias.double() + (0 if layer.bias is None else layer.bias.double())
                layer.bias = nn.Parameter(moved.to(dtype), requires_grad=False)
            layer.weight = nn.Parameter((weight * norm.weight.double()).to(dtype), requires_grad=False)
        norm.weight = nn.Parameter(torch.ones_like(norm.weight), requires_grad=False)
        if norm.bias is not None:
            norm.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)


def _ends(node: fx.Node, channels: int) -> Iterator[fx.Node | None]:
    """The linear layers that read a tensor's last axis. None for each other reader."""
    for user in value_users(node):
        if is_layer(user) and operator(user) == "linear":
            yield user
        elif user.op != "output" and repeats_values(user) and _keeps_channels(user, channels):
            yield from _ends(user, channels)
        else:
            yield None


def _keeps_channels(move: fx.Node, channels: int) -> bool:
    """True if a move leaves the channels where they are, on the last axis."""
    shape, kind = move.meta["shape"], operator(move)
    if shape is None or shape[-1] != channels:
        return False
    last = {-1, len(shape) - 1}
    if kind == "permute":
        order = [axis for given in move.args[1:] for axis in (given if isinstance(given, list | tuple) else [given])]
        return order[-1] in last
    if kind in ("transpose", "swapaxes", "swapdims"):
        return last.isdisjoint(move.args[1:])
    return kind in NO_OPERATIONS | SELECTIONS | _RESHAPES | _ALONG_OTHER_AXES


def _quantizers(captured: fx.GraphModule, node: fx.Node) -> Iterator[ActivationQuantizer]:
    for user in value_users(node):
        module = captured.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            yield module
        if user.op != "output" and repeats_values(user):
            yield from _quantizers(captured, user)
