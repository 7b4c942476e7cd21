"""Passes over an exported graph, after which integer runtimes find what they can compute with integers.

Each changes the form alone: the graph computes the same values before and after.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from zsqbench.export.graph import (
    DEQUANTIZE,
    LAYERS,
    MOVES,
    QUANTIZE,
    constant,
    initializer,
    is_made_by,
    maker,
    of_type,
    only_reader,
    output,
    put_after,
    readers,
    source,
    typed,
)
from zsqbench.export.symbols import LAYER, TENSOR, TOP

CALL = "#"
CODES = "/codes"
"""The integers of a tensor are a value of its name with this ending."""


def tidy(model: ir.Model) -> None:
    """Bring a graph that torch exported into the form that runtimes fuse, in place."""
    graph = model.graph
    name_layers(graph)
    part_zero_points(graph)
    turn_stored_weights(graph)
    fold_pads(graph)
    pool_globally(graph)
    clip_codes(graph)
    repeat_behind_moves(graph)
    drop_unused(model)


def name_layers(graph: ir.Graph) -> None:
    """Give each operator of a layer the layer's path, with a number where it is called again; take the marks away."""
    calls: dict[str, int] = {}
    for node in of_type(graph, DEQUANTIZE):
        mark = node.attributes.pop(LAYER, None)
        if mark is None:
            continue
        path = mark.as_string()
        for reader in readers(output(node)):
            layer = only_reader(output(reader)) if reader.op_type == "Transpose" else reader
            if layer is not None and layer.op_type in LAYERS:
                layer.name = called(path, calls)


def called(name: str, calls: dict[str, int]) -> str:
    """The name of the next call of a layer or a tensor's quantizer: its own at first, then with a number."""
    number = calls[name] = calls.get(name, -1) + 1
    return f"{name}{CALL}{number}" if number else name


def part_zero_points(graph: ir.Graph) -> None:
    """Give each weight zero points of its own.

    The exporter makes one constant of equal ones. A runtime that turns signed weights into unsigned ones changes it for
    each weight, and fails at the second.
    """
    for node in of_type(graph, DEQUANTIZE):
        if is_weight(node) and len(node.inputs) > 2:  # noqa: PLR2004 - a bias has none
            zero_point = constant(source(node, 2))
            assert zero_point is not None  # noqa: S101 - a weight is stored
            node.replace_input_with(2, initializer(graph, f"{source(node).name}/zero_point", zero_point))


def turn_stored_weights(graph: ir.Graph) -> None:
    """Store the weight of a product of matrices as it is multiplied, where a transposition stands in between."""
    for node in of_type(graph, "Transpose"):
        stored = maker(source(node))
        if stored is None or stored.op_type != DEQUANTIZE or only_reader(output(stored)) is not node:
            continue
        codes, perm = constant(source(stored)), node.attributes["perm"].as_ints()
        if codes is None:
            continue
        axis = stored.attributes.get("axis")
        name = str(source(stored).name)
        stored.replace_input_with(
            0, initializer(graph, f"{name}.transposed", np.ascontiguousarray(codes.transpose(perm)))
        )
        if axis is not None:
            stored.attributes["axis"] = ir.AttrInt64("axis", list(perm).index(axis.as_int()))
        output(stored).shape = output(node).shape
        ir.convenience.replace_all_uses_with(output(node), output(stored))
        graph.remove(node, safe=True)


def fold_pads(graph: ir.Graph) -> None:
    """Let convolutions pad with zeros themselves, where a Pad before them does."""
    for node in of_type(graph, "Pad"):
        pads, value = constant(source(node, 1)), constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())  # noqa: PLR2004
        layer = only_reader(output(node))
        mode = node.attributes.get("mode")
        if pads is None or value is None or value.any() or layer is None or layer.op_type != "Conv":
            continue
        rank = len(pads) // 2
        spatial = [*pads[2:rank], *pads[rank + 2 :]]
        if (mode is not None and mode.as_string() != "constant") or len(node.inputs) > 3 or min(pads) < 0:  # noqa: PLR2004
            continue
        if sum(spatial) != sum(pads):
            continue
        own = layer.attributes.get("pads")
        before = own.as_ints() if own is not None else [0] * len(spatial)
        layer.attributes["pads"] = ir.AttrInt64s("pads", [int(a + b) for a, b in zip(before, spatial, strict=True)])
        layer.replace_input_with(0, source(node))
        graph.remove(node, safe=True)


def pool_globally(graph: ir.Graph) -> None:
    """Replace a mean over height and width by GlobalAveragePool, which runtimes have for integers."""
    for node in of_type(graph, "ReduceMean"):
        axes, shape = constant(node.inputs[1]) if len(node.inputs) > 1 else None, source(node).shape
        if axes is None or shape is None or len(shape) != 4 or {int(axis) % 4 for axis in axes} != {2, 3}:  # noqa: PLR2004
            continue
        kept = node.attributes.get("keepdims")
        pooled = ir.node("GlobalAveragePool", [source(node)], name=f"{node.name}/pool")
        chain = [pooled]
        if kept is not None and not kept.as_int():
            chain.append(ir.node("Flatten", [output(pooled)], {"axis": 1}, name=f"{node.name}/flat"))
        else:
            output(pooled).shape = output(node).shape
        for pooling in chain:
            typed(output(pooling), ir.DataType.FLOAT)
        graph.insert_after(node, chain)
        quantize = only_reader(output(node))
        ir.convenience.replace_all_uses_with(output(node), output(chain[-1]), replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if len(chain) > 1 and quantize is not None and quantize.op_type == QUANTIZE:
            _move_before(graph, quantize, pooled)


def _move_before(graph: ir.Graph, quantize: ir.Node, pooled: ir.Node) -> None:
    """Round what was pooled before it is flattened, so that no operator between has floats; a later pass repeats it."""
    rest = [source(quantize, index) for index in range(1, len(quantize.inputs))]
    flat = source(quantize)
    flatten = maker(flat)
    assert flatten is not None  # noqa: S101 - it was put there
    codes = ir.node(QUANTIZE, [output(pooled), *rest], dict(quantize.attributes), name=f"{quantize.name}/pooled")
    values = ir.node(DEQUANTIZE, [output(codes), *rest], name=f"{quantize.name}/values")
    typed(output(codes), output(quantize))
    typed(output(values), ir.DataType.FLOAT)
    graph.insert_after(pooled, [codes, values])
    flatten.replace_input_with(0, output(values))
    dequantize = only_reader(output(quantize))
    assert dequantize is not None  # noqa: S101 - a pair
    ir.convenience.replace_all_uses_with(output(dequantize), flat, replace_graph_outputs=True)
    graph.remove([dequantize, quantize], safe=True)


@dataclass(frozen=True)
class _Bounds:
    """Where a chain of ReLU, ReLU6 and the like cuts values off."""

    low: float
    high: float


def clip_codes(graph: ir.Graph) -> None:
    """Cut off integers, not floats: a ReLU or ReLU6 before a grid, and codes that a grid of fewer bits does not have.

    Q(min(x, 6)) = min(Q(x), Q(6)), for rounding is monotonic; and a runtime fuses a layer with the rounding that is
    directly behind it. Nothing is put where the codes end at the bound anyway.
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
        # from the grid's end to the other, in 64 bits, so that an endless bound is none
        low, high = (np.clip(_code(bound, scale, zero_point), 0, top) for bound in (bounds.low, bounds.high))
        codes = output(node)
        codes.name = f"{name}{CODES}"
        node.name = f"{name}/quantize"
        if low > 0 or high < np.iinfo(zero_point.dtype).max:
            ends = [initializer(graph, f"code_{int(end)}", np.array(end, zero_point.dtype)) for end in (low, high)]
            codes.name = f"{name}/unclipped"
            clip = ir.node("Clip", [codes, *ends], name=f"{name}/clip")
            typed(output(clip), codes)
            put_after(graph, codes, [clip])
            output(clip).name = f"{name}{CODES}"


def _code(bound: float, scale: NDArray[Any], zero_point: NDArray[Any]) -> float:
    """The code of a value, as QuantizeLinear computes it before it cuts off."""
    return bound if math.isinf(bound) else float(np.rint(np.float32(bound) / scale) + float(zero_point))


def _absorb(graph: ir.Graph, quantize: ir.Node) -> _Bounds:
    """Take what cuts values off out of the way to a rounding, and say where it did."""
    bounds = _Bounds(-math.inf, math.inf)
    while True:
        node = maker(source(quantize))
        found = None if node is None or only_reader(output(node)) is not quantize else _bounds_of(node)
        if node is None or found is None:
            return bounds
        # what is nearer to the rounding acts last
        low, high = (min(max(end, bounds.low), bounds.high) for end in (found.low, found.high))
        bounds = _Bounds(low, high)
        quantize.replace_input_with(0, source(node))
        graph.remove(node, safe=True)


def _bounds_of(node: ir.Node) -> _Bounds | None:
    """Where an operator cuts values off that does nothing else, with the same bound for all of them; or none."""
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


def repeat_behind_moves(graph: ir.Graph) -> None:
    """Repeat the pair of a tensor behind each operator that only moves its values, so that runtimes move integers."""
    for node in list(graph):
        pair = maker(node.inputs[0]) if node.inputs else None
        if pair is None or pair.op_type != DEQUANTIZE or not _moves(node):
            continue
        if source(pair).is_initializer() or is_weight(pair):
            continue
        rest = [source(pair, index) for index in range(1, len(pair.inputs))]
        for index, moved in enumerate(node.outputs):
            place = f"{node.name}/{index}"
            reading = readers(moved)
            if not reading or all(reader.op_type == QUANTIZE for reader in reading):
                continue
            codes = ir.node(QUANTIZE, [moved, *rest], name=f"{place}/quantize")
            values = ir.node(DEQUANTIZE, [output(codes), *rest], name=f"{place}/dequantize")
            typed(output(codes), source(pair))
            typed(output(values), ir.DataType.FLOAT)
            output(codes).shape = moved.shape
            put_after(graph, moved, [codes, values])


def _moves(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    return node.op_type in MOVES


def is_weight(dequantize: ir.Node) -> bool:
    """True if a DequantizeLinear stands for stored integers, not for a tensor that the network computes."""
    return constant(source(dequantize)) is not None


def feed_pixels(model: ir.Model, mean: NDArray[Any], scale: NDArray[Any]) -> None:
    """Let a network take pixels of 8 bits: x = (pixel - mean) * scale, for each channel, is computed inside.

    `mean` and `scale` are [C], in pixels. Where the image's own grid has these pixels as its codes, they enter as they
    are.
    """
    graph = model.graph
    image = graph.inputs[0]
    pixels = ir.Value(name="pixels", type=ir.TensorType(ir.DataType.UINT8), shape=image.shape)
    quantize = only_reader(image)
    graph.inputs[0] = pixels
    if quantize is not None and quantize.op_type == QUANTIZE and _are_codes(quantize, mean, scale):
        ir.convenience.replace_all_uses_with(output(quantize), pixels, replace_graph_outputs=True)
        graph.remove(quantize, safe=True)
        return
    shape = (1, -1, 1, 1)
    ends = [
        initializer(graph, f"pixels/{name}", np.asarray(values, np.float32).reshape(shape))
        for name, values in (("mean", mean), ("scale", scale))
    ]
    cast = ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT}, name="pixels/cast")
    less = ir.node("Sub", [output(cast), ends[0]], name="pixels/subtract")
    times = ir.node("Mul", [output(less), ends[1]], name="pixels/scale")
    for value in map(output, (cast, less, times)):
        typed(value, ir.DataType.FLOAT)
        value.shape = image.shape
    graph.insert_before(graph[0], [cast, less, times])
    ir.convenience.replace_all_uses_with(image, output(times))


def _are_codes(quantize: ir.Node, mean: NDArray[Any], scale: NDArray[Any]) -> bool:
    step, zero_point = (constant(source(quantize, index)) for index in (1, 2))
    assert step is not None  # noqa: S101 - the exporter was given constants
    assert zero_point is not None  # noqa: S101
    follows = only_reader(output(quantize))
    clips = follows is not None and follows.op_type == "Clip"
    same = np.allclose(scale, step, rtol=1e-5, atol=0) and np.allclose(mean, float(zero_point), rtol=0, atol=1e-3)
    return bool(same and zero_point.dtype == np.uint8 and not clips)


def store_in_four_bits(model: ir.Model, bits: Callable[[str], int]) -> int:
    """Store the weights of layers with up to 4 bits as INT4, by the layer's path; returns how many these are."""
    graph, stored = model.graph, 0
    for node in of_type(graph, DEQUANTIZE):
        codes = constant(source(node))
        layers = [reader.name for reader in readers(output(node)) if reader.op_type in LAYERS]
        if codes is None or codes.dtype != np.int8 or not layers or bits(str(layers[0]).partition(CALL)[0]) > 4:  # noqa: PLR2004
            continue
        for index in range(0, len(node.inputs), 2):  # codes and, where there is one, the zero point
            old = source(node, index)
            array, name = constant(old), f"{old.name}.int4"
            assert array is not None  # noqa: S101 - both are stored
            if name not in graph.initializers:
                tensor = ir.tensor(array, dtype=ir.DataType.INT4, name=name)
                kind = ir.TensorType(tensor.dtype)
                graph.register_initializer(
                    ir.Value(name=name, const_value=tensor, type=kind, shape=ir.Shape(array.shape))
                )
            node.replace_input_with(index, graph.initializers[name])
        stored += 1
    return stored


def drop_unused(model: ir.Model) -> None:
    """Remove constants and operators that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def outputs_on_grids(graph: ir.Graph) -> list[bool]:
    """For each output of the network, if its values are on a grid."""
    return [is_made_by(value, DEQUANTIZE) for value in graph.outputs]
