"""Boundaries of units: values that may pass from one unit to the next, and the sources of each node.

Caches hold tensors image by image. So only floating-point tensors pass that are finite and have the images in their
first dimension. Each unit computes sizes, masks and indices again. Any other value (tuples, sums over all images,
stacked branches, a border of -inf) stays inside one unit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from zsqbench.quant.graph.operators import output_node

_PASSES = "passes"
_CAPTURED = 2
"""Number of images of the pass in which `capture` notes shapes."""
_TRIED = 3
"""Number of images of the trial. A tensor with as many rows as images in both passes has a row for each image."""


def note_passing(student: fx.GraphModule) -> None:
    """Run a student in eval mode once on a few noise images, and note the result of each node for `passes`."""
    if all(_PASSES in node.meta for node in student.graph.nodes):
        return
    images = next(node for node in student.graph.nodes if node.op == "placeholder")
    example = next(student.parameters(), torch.empty(0))
    noise = torch.rand(_TRIED, *images.meta["shape"][1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # up to one standard deviation from the mean: no network takes the logarithm of a pixel below zero
        _Trial(student).run((2 * noise - 1).to(example))


def passes(node: fx.Node) -> bool:
    """True if the result of a node fits into caches: floating-point, finite, images in the first dimension."""
    return bool(node.meta[_PASSES])


def computed(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that the network computes, not constants."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def values(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node whose values it uses."""
    return [source for source in computed(node) if source.meta["carries_values"]]


def roots(node: fx.Node, *, for_index: bool = False) -> Iterator[fx.Node]:
    """The inputs whose values a node uses, and the tensors from which its sizes, masks and indices are computed.

    An index that an operator returns beside values (topk, sort, max-pooling) is computed from the operator's inputs.
    """
    for_index = for_index or not node.meta["carries_values"]
    for source in computed(node):
        is_tuple = source.meta["shape"] is None
        if source.meta["carries_values"] and not (for_index and is_tuple):
            yield source
        else:
            yield from roots(source, for_index=for_index)


def final_tensors(student: fx.GraphModule) -> set[fx.Node]:
    """The outputs of the network that pass. For an index or a tuple, the tensors from which it is computed."""
    seen: set[fx.Node] = set()
    pending = computed(output_node(student.graph))
    while pending:
        node = pending.pop()
        if node not in seen and not passes(node):
            pending += computed(node)
        seen.add(node)
    return {node for node in seen if passes(node)}


class _Trial(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        noted = n.meta["shape"]  # None: it is not a floating-point tensor
        shapes = [noted, tuple(result.shape)] if noted and isinstance(result, Tensor) else []
        has_images = [shape[0] for shape in shapes] == [_CAPTURED, _TRIED] and shapes[0][1:] == shapes[1][1:]
        n.meta[_PASSES] = has_images and bool(result.isfinite().all())
        return result
