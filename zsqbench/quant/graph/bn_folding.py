"""Folding batch normalisation into the layer before it, by the order of the graph, not of registration."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.graph.operators import called_once, is_batch_norm, is_layer, operator
from zsqbench.quant.grids.transposed import TransposedConv2d

FOLDED = "folded_batch_norms"
"""Key of a graph's `meta` under which `fold_bn` notes the path of the batch normalisation that each layer took in."""


def fold_bn(captured: fx.GraphModule) -> None:
    """Fold each batch normalisation that is the only reader of a convolution or linear layer into it, in place.

    Others stay: behind an addition or a concatenation, at a layer whose output is also read elsewhere or that is
    called several times, or without running statistics.
    """
    for node in list(captured.graph.nodes):
        if is_batch_norm(node) and _can_fold(captured, node):
            layer_node = node.all_input_nodes[0]
            layer = cast("nn.Conv1d | nn.Conv2d | nn.Linear", captured.get_submodule(str(layer_node.target)))
            weight, bias = folded(layer, captured.get_submodule(str(node.target)))
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            node.replace_all_uses_with(layer_node)
            captured.graph.erase_node(node)
            captured.delete_submodule(str(node.target))
            captured.meta.setdefault(FOLDED, {})[str(layer_node.target)] = str(node.target)
    captured.recompile()


@torch.no_grad()
def folded(layer: nn.Conv1d | nn.Conv2d | TransposedConv2d | nn.Linear, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that does both: w s and (b - mean) s + beta, with s = gamma / sqrt(var + eps).

    `norm` is any of torch's batch normalisations, or torchvision's FrozenBatchNorm2d. Output channels are axis 0 of
    the weight, in grouped, depthwise and transposed (`TransposedConv2d`) convolutions too. Computed in float64.
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


def _can_fold(captured: fx.GraphModule, node: fx.Node) -> bool:
    before = node.all_input_nodes[0]
    norm: Any = captured.get_submodule(str(node.target))
    if not is_layer(before) or list(before.users) != [node] or norm.running_mean is None:
        return False
    channels_at_axis_1 = operator(before) != "linear" or len(before.meta["shape"]) == 2  # noqa: PLR2004
    return channels_at_axis_1 and called_once(captured, before) and called_once(captured, node)
