"""Which layers and products of an exported network can run with integers, and which run so in a runtime."""

import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from zsqbench.errors import ZSQBenchError
from zsqbench.export.graph import (
    CALL,
    DEQUANTIZE,
    LAYERS,
    QUANTIZE,
    constant,
    is_product,
    maker,
    of_type,
    output,
    readers,
    source,
)
from zsqbench.export.runtime import CPU, open_session

INTEGER = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"})
"""Operators of ONNX Runtime for layers on integers."""

_CALLED_AGAIN = re.compile(rf"{CALL}\d+$")

_FUSED = re.compile(r"(_token_\d+)?(_nchwc|_quant)?$")
"""Endings that ONNX Runtime adds to the name of an operator that it replaces."""


@dataclass(frozen=True)
class Layer:
    """A layer of an exported network."""

    path: str
    island: str | None
    """Why it is expected to run in float. None: integers are expected."""
    affine: bool = False
    """True if its weight has zero points. Integers are slow in runtimes with them."""
    found: bool | None = None
    """True if the runtime runs all its calls with integers. None: not known."""


@dataclass(frozen=True)
class Structure:
    """The layers of an exported network, in order, and its products of two tensors (as in attention)."""

    layers: tuple[Layer, ...]
    products: tuple[Layer, ...] = ()
    """Each product has the name of the first tensor that is rounded behind it."""

    @property
    def expected(self) -> int:
        """Layers that should run with integers."""
        return sum(layer.island is None for layer in self.layers)

    @property
    def integer(self) -> int:
        """Layers that the runtime runs with integers."""
        return sum(layer.found is True for layer in self.layers)

    @property
    def is_known(self) -> bool:
        """True if it is known which layers the runtime runs with integers."""
        return all(layer.found is not None for layer in self.layers)

    @property
    def missed(self) -> list[str]:
        """Layers that should run with integers, but do not."""
        return [layer.path for layer in self.layers if layer.island is None and layer.found is False]

    def lines(self) -> list[str]:
        """Lines for people: how many layers and products run with integers, and why others do not."""
        found = [_in_words("layers", self.layers)]
        found += [_in_words("products of two tensors", self.products)] if self.products else []
        reasons: dict[str, list[str]] = {}
        for each in (*self.layers, *self.products):
            if each.island is not None:
                reasons.setdefault(each.island, []).append(each.path)
        found += [f"in float, because {reason}: {_some(paths)}" for reason, paths in reasons.items()]
        if self.missed:
            found.append(f"in float, although nothing is in the way: {_some(self.missed)}")
        if self.affine:
            found.append(
                f"{len(self.affine)} layers have affine weights, with which integers are slower than floats; "
                "schemes with weight_grid: symmetric, such as qdq/w8a8, have none"
            )
        return found

    @property
    def affine(self) -> list[str]:
        """Layers whose weights have zero points."""
        return [layer.path for layer in self.layers if layer.affine]


def _in_words(what: str, layers: Sequence[Layer]) -> str:
    expected, integer = (sum(each) for each in zip(*((x.island is None, x.found is True) for x in layers), strict=True))
    if any(each.found is None for each in layers):
        return f"{expected} of {len(layers)} {what} can run with integers; it is not known if they do"
    text = f"{integer} of {len(layers)} {what} run with integers"
    return text if integer == expected else f"{text} ({expected} were expected to)"


def _some(paths: Sequence[str], most: int = 3) -> str:
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def expected_structure(path: Path) -> Structure:
    """The layers of a file, and which of them can run with integers, judged only by its graph.

    Raises ZSQBenchError for a file that cannot be read.
    """
    try:
        graph = ir.load(path).graph
    except Exception as error:
        raise ZSQBenchError(f"{path} is not a readable ONNX file: {error}") from error
    layers: dict[str, Layer] = {}
    products: dict[str, Layer] = {}
    for node in of_type(graph, *LAYERS):
        name, found = _path(node), products if is_product(node) else layers
        before = found.get(name)  # a layer that is called again
        island, affine = (_island_of_product(node), False) if is_product(node) else (_island(node), _is_affine(node))
        found[name] = Layer(name, (before and before.island) or island, affine)
    return Structure(tuple(layers.values()), tuple(products.values()))


def structure_in_runtime(path: Path, providers: Sequence[str] = (CPU,)) -> Structure:
    """The layers of a file, and which of them run with integers in a session of ONNX Runtime as users open it.

    This is only known for the provider of the CPU.
    """
    expected = expected_structure(path)
    if list(providers) != [CPU]:
        return expected
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "optimized.onnx"
        open_session(path, providers, save_optimized=kept)
        nodes = list(ir.load(kept).graph)
    kinds: dict[str, set[bool]] = {}
    known = {each.path for each in (*expected.layers, *expected.products)}
    for node in nodes:
        kinds.setdefault(_path(node, known), set()).add(node.op_type in INTEGER)
    parts = expected.layers, expected.products
    return Structure(*(tuple(replace(each, found=kinds.get(each.path) == {True}) for each in part) for part in parts))


def _path(node: ir.Node, known: Collection[str] = ()) -> str:
    """The path of a layer, from the name of its operator. A runtime may have replaced the operator."""
    name = _CALLED_AGAIN.sub("", str(node.name))
    return name if name in known else _CALLED_AGAIN.sub("", _FUSED.sub("", str(node.name), count=1)) if known else name


def _island(layer: ir.Node) -> str | None:
    """Why a layer cannot run with integers. None: it can."""
    if layer.op_type == "ConvTranspose":
        return "runtimes have no transposed convolution on integers"
    return _lack_of_weight(maker(source(layer, 1))) or _lack_of_input(maker(source(layer))) or _lack_of_output(layer)


def _island_of_product(node: ir.Node) -> str | None:
    """Why a product of two tensors cannot run with integers. None: it can. Its output may be float."""
    return _lack_of_input(maker(source(node))) or _lack_of_input(maker(source(node, 1)))


def _lack_of_weight(weight: ir.Node | None) -> str | None:
    if weight is None or weight.op_type != DEQUANTIZE or constant(source(weight)) is None:
        return "its weight is not quantized"
    dtype = source(weight).dtype
    return None if dtype == ir.DataType.INT8 else f"its weight has the type {dtype}"


def _lack_of_input(reads: ir.Node | None) -> str | None:
    if reads is None or reads.op_type != DEQUANTIZE:
        return "its input is not quantized"
    dtype = source(reads).dtype
    return None if dtype in (ir.DataType.UINT8, ir.DataType.INT8) else f"its input has the type {dtype}"


def _lack_of_output(layer: ir.Node) -> str | None:
    if layer.op_type in ("Gemm", "MatMul"):  # its output may be float
        return None
    follows = [reader.op_type for reader in readers(output(layer))]
    behind = ", ".join(sorted(set(follows))) or "the network's output"
    return None if follows == [QUANTIZE] else f"its output is not quantized before {behind}"


def _is_affine(layer: ir.Node) -> bool:
    """True if a layer's stored weight has a zero point that is not 0."""
    weight = maker(source(layer, 1))
    if weight is None or weight.op_type != DEQUANTIZE or len(weight.inputs) < 3:  # noqa: PLR2004
        return False
    zero_point = constant(source(weight, 2))
    return zero_point is not None and bool(zero_point.any())
