"""Feature alignment (HAST): intermediate outputs of student and float network, and their distances."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zsqbench.quant.graph.maps import gives_map, layers_before
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    comes_from,
    is_batch_norm,
    is_layer,
    operator,
    output_node,
    readers,
    value_users,
)
from zsqbench.quant.graph.outputs import output_producers

Alignment = Literal["attention", "paper_attention", "direct"]
"""Compared part of feature maps: attention vectors as in HAST's release or as in its paper, or the maps themselves."""


def block_outputs(captured: fx.GraphModule) -> list[fx.Node]:
    """Outputs of the last layer of each block, normalised, before an addition or activation function follows.

    These are the layers without a following activation function: the last of a residual branch, and the projection of
    an inverted residual. Of several layers that are added, the one behind most layers counts, so a projected shortcut
    does not. Networks without such layers have the layers that read depthwise convolutions. Other networks have all
    convolutions except the first. HAST's layers: 8 in ResNet-18, 9 in ResNet-20, 13 in MobileNetV1, 17 in MobileNetV2.
    """
    outputs = output_producers(captured)
    given = [node for node in captured.graph.nodes if gives_map(node)]
    given = [node for node in map(_normalized, given) if node not in outputs]
    depth = layers_before(captured)
    ends = [node for node in given if not any(operator(reader) in ACTIVATIONS for reader in readers(node))]
    deepest: dict[fx.Node, fx.Node] = {}
    for node in ends:
        for addition in _additions(node):
            deepest[addition] = max(deepest.get(addition, node), node, key=depth.__getitem__)
    # an input of the branch itself is not a shortcut beside it, but the end of the earlier block
    ends = [node for node in ends if all(comes_from(deepest[addition], node) for addition in _additions(node))]
    return ends or [node for node in given if _reads_depthwise(captured, node)] or given[1:]


def with_features(captured: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A network with the same output as the given one and, if there are `nodes`, a tuple of their values.

    Modules are shared.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    returned = graph.graph_copy(captured.graph, copies)
    graph.output((returned, tuple(copies[node] for node in nodes)) if nodes else returned)
    return fx.GraphModule(captured, graph)


def split_features(returned: Tensor | tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of a network from `with_features`, and its features, which may be empty."""
    return returned if isinstance(returned, tuple) else (returned, ())


def from_features(network: fx.GraphModule, first: int = 0) -> fx.GraphModule:
    """A network that computes the output of a `with_features` network from its features, starting at feature `first`.

    Modules are shared. Raises ValueError where these features do not suffice.
    """
    returned, features = cast("tuple[fx.Node, tuple[fx.Node, ...]]", output_node(network.graph).args[0])
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate(features[first:]):
        given = graph.placeholder(f"feature_{number}")
        copies.setdefault(node, given)
    needed, pending = set[fx.Node](), [returned]
    while pending:
        node = pending.pop()
        if node not in copies and node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    for node in network.graph.nodes:
        if node in needed and node.op == "placeholder":
            raise ValueError(f"the output is computed from {node.name!r}, too, and not from these features alone")
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[returned])
    return fx.GraphModule(network, graph)


def attention(features: Tensor) -> Tensor:
    """HAST's attention vector [N, C] of maps [N, C, H, W]: the mean square of each channel, normalised over channels.

    This follows the release. Eq. 14 of the paper is the plain sum of squares.
    """
    return functional.normalize(features.float().square().mean((2, 3)), dim=1)


def alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], form: Alignment = "attention") -> Tensor:
    """Distance between feature maps [N, C, H, W] of a student and of its float network.

    `attention`, as released: squared differences of normalised attention vectors, averaged over images and channels and
    summed over layers. `paper_attention` (Eq. 13 and 14): squared distances of sums of squares, averaged over images
    and layers. `direct`: squared differences of the maps, averaged over all values and summed over layers.
    """
    pairs = list(zip(student, teacher, strict=True))
    if form == "attention":
        return torch.stack([functional.mse_loss(attention(ours), attention(theirs)) for ours, theirs in pairs]).sum()
    if form == "direct":
        return torch.stack([functional.mse_loss(ours.float(), theirs.float()) for ours, theirs in pairs]).sum()
    energies = [[each.float().square().sum((2, 3)) for each in pair] for pair in pairs]
    return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in energies]).mean()


def _additions(node: fx.Node) -> list[fx.Node]:
    return [reader for reader in readers(node) if operator(reader) == "add"]


def _normalized(node: fx.Node) -> fx.Node:
    users = value_users(node)
    return users[0] if len(users) == 1 and is_batch_norm(users[0]) else node


def _reads_depthwise(captured: fx.GraphModule, node: fx.Node) -> bool:
    source = node if is_layer(node) else node.all_input_nodes[0]
    while not is_layer(source := source.all_input_nodes[0]):
        if len(source.all_input_nodes) != 1:
            return False
    layer = captured.get_submodule(str(source.target))
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
