"""Intermediate outputs of a network: which are compared between student and float network, and how they are read."""

from collections.abc import Sequence

from torch import fx, nn

from zsqbench.quant.graph.tracing import (
    ACTIVATIONS,
    comes_from,
    is_batch_norm,
    is_layer,
    operator,
    output_producers,
    readers,
)

IMAGES = 4
"""Dimensions of a map."""


def block_outputs(captured: fx.GraphModule) -> list[fx.Node]:
    """What the last layer of each block gives, normalised, before an addition or activation function follows.

    Those are the layers that no activation function follows: the last of a residual branch, and the projection of an
    inverted residual; of several that are added up, the one behind most layers, so that a projected shortcut is none.
    In a network without them, the layers that read depthwise convolutions; and in any other, all convolutions but the
    first. HAST's layers: 8 in ResNet-18, 9 in ResNet-20, 13 in MobileNetV1, 17 in MobileNetV2.
    """
    outputs = output_producers(captured)
    given = [node for node in captured.graph.nodes if is_layer(node) and len(node.meta["shape"]) == IMAGES]
    given = [node for node in map(_normalised, given) if node not in outputs]
    depth = _layers_before(captured)
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


def _additions(node: fx.Node) -> list[fx.Node]:
    return [reader for reader in readers(node) if operator(reader) == "add"]


def _normalised(node: fx.Node) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_batch_norm(users[0]) else node


def _layers_before(captured: fx.GraphModule) -> dict[fx.Node, int]:
    """How many layers lie on the longest way to each node, itself included."""
    depth: dict[fx.Node, int] = {}
    for node in captured.graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = before + is_layer(node)
    return depth


def _reads_depthwise(captured: fx.GraphModule, node: fx.Node) -> bool:
    source = node if is_layer(node) else node.all_input_nodes[0]
    while not is_layer(source := source.all_input_nodes[0]):
        if len(source.all_input_nodes) != 1:
            return False
    layer = captured.get_submodule(str(source.target))
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
