"""Feature maps [N, C, H, W] in a network: the last map with several positions, and the inputs of the network behind."""

from torch import fx

from zsqbench.quant.graph.operators import is_layer, operator

IMAGES = 4
"""Dimensions of a map."""


def last_map(captured: fx.GraphModule) -> fx.Node | None:
    """The layer with the last map of more than one position, which Grad-CAM uses. None: there is no such layer.

    Among several layers it is the layer behind most layers, so that a projected shortcut does not count. For equal
    numbers it is the last. Layers of a classifier in the form of a 1 x 1 convolution have maps of one position, and so
    have squeezed channels.
    """
    depth = layers_before(captured)
    spatial = [node for node in captured.graph.nodes if gives_map(node) and _positions(node) > 1]
    return max(reversed(spatial), key=depth.__getitem__, default=None)


def layers_before(captured: fx.GraphModule) -> dict[fx.Node, int]:
    """Number of layers on the longest path to each node, itself included."""
    depth: dict[fx.Node, int] = {}
    for node in captured.graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = before + is_layer(node)
    return depth


def cut_behind(captured: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """All inputs of the network behind a node: first the node, then others, such as a shortcut."""
    behind = {node}
    for later in captured.graph.nodes:
        if not behind.isdisjoint(later.all_input_nodes):
            behind.add(later)
    read = {source for later in behind - {node} for source in later.all_input_nodes} - behind
    return [node, *(each for each in captured.graph.nodes if each in read and each.op != "get_attr")]


def gives_map(node: fx.Node) -> bool:
    """True for a convolution of images. A linear layer of four dimensions, as in Swin, has channels last."""
    return is_layer(node) and operator(node) != "linear" and len(node.meta["shape"]) == IMAGES


def _positions(node: fx.Node) -> int:
    shape = node.meta["shape"]
    return int(shape[2] * shape[3])
