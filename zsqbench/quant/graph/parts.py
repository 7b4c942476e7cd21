"""The positions of tensors in a transformer, besides their roles in any network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from torch import Tensor, fx

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
"""The operators that make attention weights from scores. `take_attention_apart` also writes them."""
_SCALINGS = MULTIPLICATIONS | names("div truediv")
_MASKINGS = names("maskedfill where")
_BEFORE_SOFTMAX = _SCALINGS | _MASKINGS | names("add sub")
_HIDES = -100.0
"""The number that Swin adds to the scores of hidden keys. Other networks add smaller numbers."""
_OF_ONE = {"layernorm": "layer_norm", "gelu": "gelu"}


def parts(captured: fx.GraphModule, roles: Mapping[fx.Node, str]) -> dict[fx.Node, tuple[str, ...]]:
    """The entries of `PARTS` for each tensor with a role, in their order. Tensors without any are left out.

    A tensor may have several: the joint output of a layer for queries, keys and values has all three. An attention is a
    softmax between two matrix products, in any form. The residual stream consists of the sums that a layer
    normalisation reads, and of sums that are connected to these only by additions.
    """
    played: dict[fx.Node, set[str]] = {node: set() for node in roles}
    found = [(node, _OF_ONE[operator(node)]) for node in captured.graph.nodes if operator(node) in _OF_ONE]
    for node, part in (*found, *chain.from_iterable(each.parts(captured) for each in _attentions(captured))):
        if node in played:
            played[node].add(part)
    sums = [node for node, role in roles.items() if role == "sum" and not played[node] & {"scores", "masked_scores"}]
    for node in _stream(sums):
        played[node].add("residual")
    return {node: tuple(part for part in PARTS if part in own) for node, own in played.items() if own}


def operands(captured: fx.GraphModule) -> dict[tuple[fx.Node, fx.Node], str]:
    """The part of each factor of attention's products, by the product and its input."""
    found: dict[tuple[fx.Node, fx.Node], str] = {}
    for attention in _attentions(captured):
        product = attention.scores[-1]
        found |= {(product, factor): part for factor, part in zip(_factors(product), ("query", "key"), strict=False)}
        for context in attention.contexts:
            for factor in _factors(context):
                is_weights = without_moves(factor) is attention.softmax
                found[context, factor] = "softmax" if is_weights else "value"
    return found


@dataclass(frozen=True)
class _Attention:
    """An attention: a softmax between products of matrices."""

    softmax: fx.Node
    scores: list[fx.Node]
    """The nodes from the input of the softmax back to the product of queries and keys."""
    contexts: list[fx.Node]
    """The products of attention weights and values."""

    def parts(self, captured: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
        """The tensors of the attention with their parts."""
        yield self.softmax, "softmax"
        for node, reader in zip(self.scores, (None, *self.scores), strict=False):
            yield node, _part_of_scores(captured, node, reader)
        for context in self.contexts:
            yield context, "context"
            makers = map(without_moves, _factors(context))
            yield from ((maker, "value") for maker in makers if maker is not self.softmax)
        for factor, part in zip(_factors(self.scores[-1]), ("query", "key"), strict=False):
            made = without_moves(factor)
            while operator(made) in _SCALINGS and count_activations(made) == 1:
                yield made, "scaled_query"
                made = _without_moves_of(made)
            yield made, part


def _attentions(captured: fx.GraphModule) -> Iterator[_Attention]:
    for node in captured.graph.nodes:
        if operator(node) in SOFTMAXES:
            contexts = [reader for reader in readers(node) if multiplies_matrices(reader)]
            if contexts and (scores := _scores(_without_moves_of(node))):
                yield _Attention(node, scores, contexts)


def _part_of_scores(captured: fx.GraphModule, node: fx.Node, reader: fx.Node | None) -> str:
    """The part of scores, by the operators between them and the softmax."""
    if operator(node) in _MASKINGS or any(is_mask(captured, without_moves(each)) for each in node.all_input_nodes):
        return "masked_scores"
    return "unscaled_scores" if reader is not None and operator(reader) in _SCALINGS else "scores"


def is_mask(captured: fx.GraphModule, node: fx.Node) -> bool:
    """True for a constant mask of scores: some of its numbers hide keys. A bias may already be added."""
    if node.op != "get_attr":
        return False
    values: Tensor = attrgetter(str(node.target))(captured)
    return bool((values <= _HIDES).any())


def _scores(node: fx.Node) -> list[fx.Node]:
    """The nodes from the input of a softmax back to the product of queries and keys. None: there is no such path."""
    if multiplies_matrices(node):
        return [node]
    if operator(node) in _BEFORE_SOFTMAX:
        for source in _values(node):
            if found := _scores(without_moves(source)):
                return [node, *found]
    return []


def _stream(sums: list[fx.Node]) -> list[fx.Node]:
    """The sums of the residual stream, among these sums in execution order."""
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
    """True for a product of two matrices that both depend on images."""
    return operator(node) in PRODUCTS - MULTIPLICATIONS and count_activations(node) > 1


def _factors(node: fx.Node) -> list[fx.Node]:
    """Both input tensors of a product of matrices."""
    return [source for source in node.args if isinstance(source, fx.Node) and source in _values(node)]


def _values(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op != "get_attr" and source.meta["carries_values"]]


def _without_moves_of(node: fx.Node) -> fx.Node:
    return without_moves(_values(node)[0])
