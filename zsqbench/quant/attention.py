"""Attention in a captured network, found by structure: softmax, then its product with the values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from zsqbench.quant.graph.operators import CONCATENATIONS, is_layer, operator, output_node, readers, without_moves
from zsqbench.quant.graph.parts import SOFTMAXES, multiplies_matrices

_CAPTURED_IMAGES = 2
"""Number of images for the shapes of a captured graph."""
_TOKENS = 3
"""Dimensions of tokens: images, tokens, channels."""


@dataclass(frozen=True)
class Attention:
    """The attention of one block. Its tensors have a row for each head, or for each image and head.

    The first dimension counts images, or images times windows, or images times heads. Rows of an image are side by
    side.
    """

    weights: fx.Node
    """The softmax: how much each token attends to each key, [..., tokens, keys]."""
    context: fx.Node
    """The weights times the values, before heads are joined: [..., tokens, channels]."""

    @property
    def tokens(self) -> int:
        """Number of query tokens in each window."""
        return int(self.context.meta["shape"][-2])

    @property
    def keys(self) -> int:
        """Number of keys for each query token."""
        return int(self.weights.meta["shape"][-1])

    @property
    def heads(self) -> int:
        """Number of rows of an image or a window, side by side."""
        shape = self.weights.meta["shape"]
        return int(shape[0]) // _CAPTURED_IMAGES if len(shape) == _TOKENS else int(shape[1])

    @property
    def windows(self) -> int:
        """Number of windows of an image. 1: all tokens see each other."""
        shape = self.context.meta["shape"]
        return 1 if len(shape) == _TOKENS else int(shape[0]) // _CAPTURED_IMAGES


@dataclass(frozen=True)
class KeyGrid:
    """Keys of attention on a grid, row by row, of the image or of a window."""

    before: int
    """Number of keys before them without a position, such as a class token."""
    height: int
    width: int

    @property
    def keys(self) -> int:
        """Number of keys on the grid."""
        return self.height * self.width


def find_attention(captured: fx.GraphModule) -> list[Attention]:
    """The attention of each block of several tokens, in execution order.

    Pooling by attention, with one query token, does not count.
    """
    found = []
    for node in captured.graph.nodes:
        if operator(node) in SOFTMAXES and node.meta["shape"] is not None:
            found += [Attention(reader.all_input_nodes[0], reader) for reader in readers(node) if _weighs(node, reader)]
    return found


def has_class_token(captured: fx.GraphModule) -> bool:
    """True if the first token does not come from the image, such as a learned class token."""
    of_image: set[fx.Node] = set()
    for node in captured.graph.nodes:
        sources = [source for source in node.all_input_nodes if source.meta["carries_values"]]
        if node.op == "placeholder" or not of_image.isdisjoint(sources):
            of_image.add(node)
    return any(
        operator(node) in CONCATENATIONS
        and node in of_image
        and node.all_input_nodes[0] not in of_image
        and len(node.meta["shape"] or ()) == _TOKENS
        and node.meta["shape"][1] > node.all_input_nodes[0].meta["shape"][1]
        for node in captured.graph.nodes
    )


def patch_size(captured: fx.GraphModule) -> tuple[int, int] | None:
    """Height and width of the patches into which the first convolution cuts the image. None: it cuts no patches."""
    for node in captured.graph.nodes:
        if operator(node) == "conv2d" and is_layer(node) and without_moves(node.all_input_nodes[0]).op == "placeholder":
            layer: Any = captured.get_submodule(str(node.target))
            if layer.stride == layer.kernel_size and layer.padding in ((0, 0), "valid"):
                height, width = layer.kernel_size
                return height, width
    return None


def key_grid(attention: Attention, sides: Sequence[int], patch: Sequence[int] | None) -> KeyGrid | None:
    """The grid of an attention's keys, for an image with this height and width. None: not known.

    For windows it is a square. Otherwise it is the grid of the patches with height and width `patch`, if there are as
    many keys, or up to twice as many (the first keys are then other tokens). Otherwise it is a grid with the image's
    proportions, if all keys, or all but the first, make such a grid.
    """
    if attention.windows == 1 and patch:
        height, width = (side // part for side, part in zip(sides, patch, strict=True))
        if height * width <= attention.keys < 2 * height * width:
            return KeyGrid(attention.keys - height * width, height, width)
    height, width = sides if attention.windows == 1 else (1, 1)
    unit = math.gcd(height, width)
    height, width = height // unit, width // unit
    for before in (0, 1) if attention.windows == 1 else (0,):
        cells, rest = divmod(attention.keys - before, height * width)
        times = math.isqrt(cells)
        if rest == 0 < times and times**2 == cells:
            return KeyGrid(before, times * height, times * width)
    return None


def also_returning(captured: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """The captured network itself, changed to return a pair: its outputs, and the values of these nodes."""
    output = output_node(captured.graph)
    output.args = ((output.args[0], tuple(nodes)),)
    captured.recompile()
    return captured


def _weighs(softmax: fx.Node, product: fx.Node) -> bool:
    """True if a product weighs values by a softmax, for several tokens, each with its own row."""
    if not multiplies_matrices(product) or product.meta["shape"] is None:
        return False
    weights = product.all_input_nodes[0]
    given, shape = weights.meta["shape"], product.meta["shape"]
    several = len(shape) in (_TOKENS, _TOKENS + 1) and shape[-2] > 1
    return several and without_moves(weights) is softmax and given[:-1] == shape[:-1]
