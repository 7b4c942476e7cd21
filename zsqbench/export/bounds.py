"""A pass over an exported graph: it clips integers in place of values at ReLU, ReLU6 and grids of few bits."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from zsqbench.export.graph import (
    CODES,
    QUANTIZE,
    ROUNDING,
    called,
    constant,
    initializer,
    maker,
    of_type,
    only_reader,
    output,
    put_after,
    source,
    typed,
)
from zsqbench.export.symbols import TENSOR, TOP


@dataclass(frozen=True)
class _Bounds:
    """The bounds of a chain of ReLU, ReLU6 and similar operators."""

    low: float
    high: float


def clip_codes(graph: ir.Graph) -> None:
    """Clip integers, not floats: for a ReLU or ReLU6 before a grid, and for codes that a grid of fewer bits lacks.

    Rounding is monotonic, so Q(min(x, 6)) = min(Q(x), Q(6)). A runtime fuses a layer with the rounding directly behind
    it. If the codes already end at the bound, no operator is added. ONNX Runtime has no Clip for codes of 16 bits, so
    there the values are clipped.
    """
    calls: dict[str, int] = {}
    for node in of_type(graph, QUANTIZE):
        mark = node.attributes.pop(TENSOR, None)
        if mark is None:
            continue
        top = node.attributes.pop(TOP).as_int()
        name = called(mark.as_string(), calls)
        scale, zero_point = (constant(source(node, index)) for index in (1, 2))
        assert scale is not None  # noqa: S101 - the exporter was given constants
        assert zero_point is not None  # noqa: S101
        bounds = _absorb(graph, node)
        ends = _Bounds(*(_code(bound, scale, zero_point, top) for bound in (bounds.low, bounds.high)))
        output(node).name, node.name = f"{name}{CODES}", f"{name}{ROUNDING}"
        if ends.low <= 0 and ends.high >= np.iinfo(zero_point.dtype).max:
            continue
        if zero_point.dtype == np.uint8:
            _clip_behind(graph, node, name, ends, zero_point.dtype)
        else:
            _clip_before(graph, node, name, ends, scale, zero_point)


def _clip_behind(graph: ir.Graph, quantize: ir.Node, name: str, ends: _Bounds, kind: np.dtype[Any]) -> None:
    """Clip the output codes of a rounding."""
    codes = output(quantize)
    limits = [initializer(graph, f"code_{end:.0f}", np.array(end, kind)) for end in (ends.low, ends.high)]
    codes.name = f"{name}/unclipped"
    clip = ir.node("Clip", [codes, *limits], name=f"{name}/clip")
    typed(output(clip), codes)
    put_after(graph, codes, [clip])
    output(clip).name = f"{name}{CODES}"


def _clip_before(
    graph: ir.Graph, quantize: ir.Node, name: str, ends: _Bounds, scale: NDArray[Any], zero_point: NDArray[Any]
) -> None:
    """Clip the input values of a rounding, at the first and last of these codes."""
    values = [np.asarray((end - float(zero_point)) * scale, np.float32) for end in (ends.low, ends.high)]
    limits = [
        initializer(graph, f"{name}/{place}", value) for place, value in zip(("low", "high"), values, strict=True)
    ]
    clip = ir.node("Clip", [source(quantize), *limits], name=f"{name}/clip")
    typed(output(clip), ir.DataType.FLOAT)
    output(clip).shape = source(quantize).shape
    quantize.replace_input_with(0, output(clip))
    graph.insert_before(quantize, clip)


def _code(bound: float, scale: NDArray[Any], zero_point: NDArray[Any], top: int) -> float:
    """The code of a value on a grid that ends at code `top`, computed as by QuantizeLinear."""
    code = bound if math.isinf(bound) else float(np.rint(np.float32(bound) / scale) + float(zero_point))
    return min(max(code, 0.0), float(top))


def _absorb(graph: ir.Graph, quantize: ir.Node) -> _Bounds:
    """Remove the clipping operators before a rounding, and return their bounds."""
    bounds = _Bounds(-math.inf, math.inf)
    while True:
        node = maker(source(quantize))
        found = None if node is None or only_reader(output(node)) is not quantize else _bounds_of(node)
        if node is None or found is None:
            return bounds
        # an operator nearer to the rounding acts later
        low, high = (min(max(end, bounds.low), bounds.high) for end in (found.low, found.high))
        bounds = _Bounds(low, high)
        quantize.replace_input_with(0, source(node))
        graph.remove(node, safe=True)


def _bounds_of(node: ir.Node) -> _Bounds | None:
    """The bounds of an operator that only clips, with one bound for all values. None: it is another operator."""
    if node.op_type == "Relu":
        return _Bounds(0, math.inf)
    if node.op_type == "Clip":
        ends = [constant(value) if value is not None else None for value in (*node.inputs[1:], None, None)[:2]]
        given = [value is not None for value in (*node.inputs[1:], None, None)[:2]]
        if any(here and end is None for here, end in zip(given, ends, strict=True)):
            return None
        low, high = ends
        return _Bounds(-math.inf if low is None else float(low), math.inf if high is None else float(high))
    if node.op_type in ("Min", "Max") and len(node.inputs) == 2:  # noqa: PLR2004
        end = constant(source(node, 1))
        if end is None or not (end == end.flat[0]).all():
            return None
        bound = float(end.flat[0])
        return _Bounds(-math.inf, bound) if node.op_type == "Min" else _Bounds(bound, math.inf)
    return None
