"""The raw outputs of a network: its values before a sigmoid, softmax or concatenation decodes them."""

from torch import fx

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.layers import MADE
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    ENDINGS,
    is_batch_norm,
    is_layer,
    operator,
    output_node,
    repeats_values,
    tensor_name,
    without_moves,
)


def output_layers(captured: fx.GraphModule) -> list[str]:
    """The paths of the modules that make the network's raw outputs, in execution order, each once.

    For each output it is the last layer before it, or the batch normalisation behind this layer, before any activation.
    Raises ZSQBenchError if an output does not come from a layer.
    """
    paths: dict[str, None] = {}
    outputs = output_producers(captured)
    for node in captured.graph.nodes:
        if node not in outputs:
            continue
        maker = without_moves(node.all_input_nodes[0]) if operator(node) in ACTIVATIONS else node
        if not (is_layer(maker) or is_batch_norm(maker)) or maker.meta.get(MADE):
            raise ZSQBenchError(
                f"the output {tensor_name(node)!r} ({operator(node)}) comes from no convolution or linear layer that "
                "is a module; what decodes outputs belongs into postprocess"
            )
        paths[str(maker.target)] = None
    return list(paths)


def output_producers(captured: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values the network returns, before any sigmoid, softmax or concatenation: its raw outputs."""
    return raw_outputs(captured)[0]


def decoding(captured: fx.GraphModule) -> set[fx.Node]:
    """The nodes between the raw outputs and the end of the network, including nodes that only move values."""
    return raw_outputs(captured)[1]


def raw_outputs(captured: fx.GraphModule) -> tuple[set[fx.Node], set[fx.Node]]:
    """The producers of the raw outputs, and the nodes that decode them."""
    outputs: set[fx.Node] = set()
    after: set[fx.Node] = set()
    pending = list(output_node(captured.graph).all_input_nodes)
    while pending:
        node = pending.pop()
        moves = repeats_values(node)
        if (moves or operator(node) in ENDINGS) and all(_is_end(user, after) for user in node.users):
            after.add(node)
            pending += [source for source in node.all_input_nodes if source.meta["carries_values"]]
        else:
            outputs.add(without_moves(node) if moves else node)
    return outputs - after, after


def _is_end(user: fx.Node, after: set[fx.Node]) -> bool:
    return user.op == "output" or user in after or not user.meta["carries_values"]
