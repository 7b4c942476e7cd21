"""Feature alignment (HAST): which intermediate outputs of student and float network are compared, and how far apart."""

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
"""What of two feature maps is compared: attention vectors as HAST's release computes them, as its paper defines them,
or the maps themselves."""


def block_outputs(captured: fx.GraphModule) -> list[fx.Node]:
    """What the last layer of each block gives, normalised, before an addition or activation function follows.

    Those are the layers that no activation function follows: the last of a residual branch, and the projection of an
    inverted residual; of several that are added up, the one behind most layers, so that a projected shortcut is none.
    In a network without them, the layers that read depthwise convolutions; and in any other, all convolutions but the
    first. HAST's layers: 8 in ResNet-18, 9 in ResNet-20, 13 in MobileNetV1, 17 in MobileNetV2.
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
    # what the branch itself reads is no shortcut beside it, but the end of the block before
    ends = [node for node in ends if all(comes_from(deepest[addition], node) for addition in _additions(node))]
    return ends or [node for node in given if _reads_depthwise(captured, node)] or given[1:]


def with_features(captured: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A network that returns what the given one does and, if there are any, a tuple of these of its nodes.

    Modules are shared.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    returned = graph.graph_copy(captured.graph, copies)
    graph.output((returned, tuple(copies[node] for node in nodes)) if nodes else returned)
    return fx.GraphModule(captured, graph)


def split_features(returned: Tensor | tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of a network that `with_features` made, and the features, of which there may be none."""
    return returned if isinstance(returned, tuple) else (returned, ())


def from_features(network: fx.GraphModule, first: int = 0) -> fx.GraphModule:
    """A network that computes the output of one that `with_features` made from its features, from this number on.

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

    That is what the release computes. Eq. 14 of the paper is the sum of squares, as it is.
    """
    return functional.normalize(features.float().square().mean((2, 3)), dim=1)


def alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], form: Alignment = "attention") -> Tensor:
    """How far feature maps [N, C, H, W] of a student are from those of its float network.

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
