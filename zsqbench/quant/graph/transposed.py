"""Transposed convolutions of a graph, with output channels on axis 0 of their weights."""

from torch import fx, nn

from zsqbench.quant.graph.operators import is_layer
from zsqbench.quant.grids.transposed import TransposedConv2d


def put_outputs_first(captured: fx.GraphModule) -> None:
    """Replace each transposed convolution that a captured graph calls by a `TransposedConv2d`, in place."""
    for path in dict.fromkeys(str(node.target) for node in captured.graph.nodes if is_layer(node)):
        layer = captured.get_submodule(path)
        if isinstance(layer, nn.ConvTranspose2d):
            captured.set_submodule(path, TransposedConv2d.of(layer))
