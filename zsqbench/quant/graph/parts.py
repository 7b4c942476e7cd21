"""The parts that tensors play in a transformer, besides the roles that they have in any network."""

from collections.abc import Iterator, Mapping

from torch import fx

from zsqbench.quant.graph.operators import (
    MULTIPLICATIONS,
    PRODUCTS,
    count_activations,
    names,
    operator,
    readers,
    without_moves,
)
from zsqbench.scheme import PARTS

SOFTMAXES = names("softmax maskedsoftmax causalsoftmax")
"""The operators that make attention weights of scores, as `take_attention_apart` writes them, too."""
_SCALINGS = MULTIPLICATIONS | names("div truediv")
_BEFORE_SOFTMAX = _SCALINGS | names("add sub maskedfill where")
_OF_ONE = {"layernorm": "layer_norm", "gelu": "gelu"}


def parts(captured: fx.GraphModule, roles: Mapping[fx.Node, str]) -> dict[fx.Node, tuple[str, ...]]:
    """Which of `PARTS` each tensor that has a role plays, in their order, for those that play any.

    One tensor may play several: what a layer makes of queries, keys and values together is all three. An attention is
    a softmax between two matrix products, however it is written. The residual stream is the sums that a layer
    normalisation reads, and those that additions alone lead to or from these.
    """
    played: dict[fx.Node, set[str]] = {node: set() for node in roles}
    for node in captured.graph.nodes:
        own = [(node, _OF_ONE[operator(node)])] if operator(node) in _OF_ONE else []
        for each, part in _attention(node) if operator(node) in SOFTMAXES else own:
            if each in played:
                played[each].add(part)
    sums = [node for node, role in roles.items() if role == "sum" and "scores" not in played[node]]
    for node in _stream(sums):
        played[node].add("residual")
    return {node: tuple(part for part in PARTS if part in own) for node, own in played.items() if own}


def _attention(softmax: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """The tensors of an attention with their parts, by its softmax; none where it is no attention."""
    scores = _scores(_without_moves_of(softmax))
    contexts = [reader for reader in readers(softmax) if multiplies_matrices(reader)]
    if not scores or not contexts:
        return
    yield softmax, "softmax"
    yield from ((node, "scores") for node in scores)
    for context in contexts:
        yield context, "context"
        yield from ((value, "value") for value in _factors(context) if value is not softmax)
    for factor, part in zip(_factors(scores[-1]), ("query", "key"), strict=False):
        made = factor
        while operator(made) in _SCALINGS and count_activations(made) == 1:
            yield made, "scaled_query"
            made = _without_moves_of(made)
        yield made, part


def _scores(node: fx.Node) -> list[fx.Node]:
    """The way from what a softmax reads back to the product of queries and keys; none where there is no such way."""
    if multiplies_matrices(node):
        return [node]
    if operator(node) in _BEFORE_SOFTMAX:
        for source in _values(node):
            if found := _scores(without_moves(source)):
                return [node, *found]
    return []


def _stream(sums: list[fx.Node]) -> list[fx.Node]:
    """The sums of the residual stream, of these sums in execution order."""
    terms = {node: [without_moves(source) for source in _values(node)] for node in sums}
    found = {node for node in sums if any(operator(reader) == "layernorm" for reader in readers(node))}
    for node in reversed(sums):
        if node in found:
            found.update(term for term in terms[node] if term in terms)
    for node in sums:
        if not found.isdisjoint(terms[node]):
            found.add(node)
    return [node for node in sums if node in found]


def multiplies_matrices(node: fx.Node) -> bool:
    """True for a product of two matrices that images decide."""
    return operator(node) in PRODUCTS - MULTIPLICATIONS and count_activations(node) > 1


def _factors(node: fx.Node) -> list[fx.Node]:
    return [without_moves(source) for source in node.args if isinstance(source, fx.Node) and source in _values(node)]


def _values(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op != "get_attr" and source.meta["carries_values"]]


def _without_moves_of(node: fx.Node) -> fx.Node:
    return without_moves(_values(node)[0])
