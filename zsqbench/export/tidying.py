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


_TURNS = ("Reshape", "Transpose")
"""The operators that a stored weight may go through before a layer reads it."""


def tidy(model: ir.Model) -> None:
    """Bring a graph that torch exported into the form that runtimes fuse, in place."""
    graph = model.graph
    names = [value.name for value in graph.outputs]
    part_calls(graph)
    name_layers(graph)
    turn_stored_weights(graph)
    part_stored_weights(graph)
    fold_pads(graph)
    pool_globally(graph)
    clip_codes(graph)
    repeat_behind_moves(graph)
    drop_unused(model)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name  # another operator may make it by now


def part_calls(graph: ir.Graph) -> None:
    """Give each call of a layer operators of its own that make its weight."""
    for node in _stored_weights(graph):
        chain = _way(node)
        for number, use in enumerate(list(output(chain[-1]).uses())[1:], 1):
            copies: list[ir.Node] = []
            for old in chain:
                inputs = [output(copies[-1]), *old.inputs[1:]] if copies else old.inputs
                copies.append(ir.node(old.op_type, inputs, dict(old.attributes), name=f"{old.name}{CALL}{number}"))
                typed(output(copies[-1]), output(old))
                output(copies[-1]).shape = output(old).shape
            graph.insert_before(use.node, copies)
            use.node.replace_input_with(use.idx, output(copies[-1]))


def _stored_weights(graph: ir.Graph) -> list[ir.Node]:
    """What makes weights of stored integers; biases have 32 bits."""
    return [
        node
        for node in of_type(graph, DEQUANTIZE)
        if (codes := constant(source(node))) is not None and codes.dtype != np.int32
    ]


def _way(stored: ir.Node) -> list[ir.Node]:
    """What makes a weight, and all that this alone goes through before a layer, or several, read it."""
    chain = [stored]
    while (follows := only_reader(output(chain[-1]))) is not None and follows.op_type in _TURNS:
        chain.append(follows)
    return chain


def name_layers(graph: ir.Graph) -> None:
    """Give each operator of a layer the layer's path, with a number where it is called again; take the marks away."""
    calls: dict[str, int] = {}
    paths = {}
    for stored in _stored_weights(graph):
        mark = stored.attributes.pop(LAYER, None)
        layer = only_reader(output(_way(stored)[-1]))
        if mark is not None and layer is not None and layer.op_type in LAYERS:
            paths[layer] = mark.as_string()
    for layer in of_type(graph, *LAYERS):
        if layer in paths:
            layer.name = called(paths[layer], calls)


def called(name: str, calls: dict[str, int]) -> str:
    """The name of the next call of a layer or a tensor's quantizer: its own at first, then with a number."""
    number = calls[name] = calls.get(name, -1) + 1
    return f"{name}{CALL}{number}" if number else name


def turn_stored_weights(graph: ir.Graph) -> None:
    """Store a weight as its layer reads it, where a transposition or the like stands in between."""
    for stored in _stored_weights(graph):
        codes, chain = constant(source(stored)), _way(stored)[1:]
        assert codes is not None  # noqa: S101 - a weight is stored
        turned = _turned(codes, chain)
        axis = stored.attributes.get("axis")
        if not chain or turned is None:
            continue
        if axis is not None:
            place = _channels_of(codes.shape, axis.as_int(), chain)
            if place is None:
                continue
            stored.attributes["axis"] = ir.AttrInt64("axis", place)
        name = f"{source(stored).name}.turned"
        stored.replace_input_with(0, initializer(graph, name, np.ascontiguousarray(turned)))
        end = output(chain[-1])
        output(stored).shape = ir.Shape(turned.shape)
        ir.convenience.replace_all_uses_with(end, output(stored))
        graph.remove(chain[::-1], safe=True)


def _turned(array: NDArray[Any], chain: list[ir.Node]) -> NDArray[Any] | None:
    """What operators that move values make of an array; none where that is not known yet."""
    for node in chain:
        if node.op_type == "Transpose":
            array = array.transpose(node.attributes["perm"].as_ints())
        elif (shape := constant(source(node, 1))) is not None:
            array = array.reshape(shape)
        else:
            return None
    return array


def _channels_of(shape: tuple[int, ...], axis: int, chain: list[ir.Node]) -> int | None:
    """The axis that channels are on behind such operators; none where they are on several, as those of groups."""
    channels = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1 - axis))
    turned = _turned(np.broadcast_to(channels, shape), chain)
    assert turned is not None  # noqa: S101 - it was computed before
    for place, size in enumerate(turned.shape):
        along = np.arange(size).reshape(-1, *[1] * (turned.ndim - 1 - place))
        if size == shape[axis] and (turned == along).all():
            return place
    return None


def part_stored_weights(graph: ir.Graph) -> None:
    """Give each weight integers and zero points of its own, each call of a layer that is called again included.

    The exporter makes one constant of equal ones. A runtime that turns signed weights into unsigned ones changes it for
    each weight, and fails at the second.
    """
    taken: set[ir.Value] = set()
    for node in _stored_weights(graph):
        for index, name in ((0, source(node).name), (2, f"{source(node).name}/zero_point")):
            value = source(node, index)
            if value in taken or index:
                array = constant(value)
                assert array is not None  # noqa: S101 - a weight is stored
                value = initializer(graph, str(name), array, own=True)
                node.replace_input_with(index, value)
            taken.add(value)


def fold_pads(graph: ir.Graph) -> None:
    """Let convolutions pad with zeros themselves, and max-pooling with what no value is below, where a Pad does."""
    for node in of_type(graph, "Pad"):
        layer, pads, value = only_reader(output(node)), constant(source(node, 1)), _padding(node)
        if layer is None or pads is None or value is None or source(layer) is not output(node):
            continue
        rank = len(pads) // 2
        spatial = [*pads[2:rank], *pads[rank + 2 :]]
        if min(pads) < 0 or sum(spatial) != sum(pads) or not _pads_so(layer, value, spatial, source(node)):
            continue
        own = layer.attributes.get("pads")
        before = own.as_ints() if own is not None else [0] * len(spatial)
        layer.attributes["pads"] = ir.AttrInt64s("pads", [int(a + b) for a, b in zip(before, spatial, strict=True)])
        layer.replace_input_with(0, source(node))
        graph.remove(node, safe=True)


def _padding(node: ir.Node) -> float | None:
    """The number that a Pad puts around all that it is given; none where it repeats values, or has chosen axes."""
    mode = node.attributes.get("mode")
    if (mode is not None and mode.as_string() != "constant") or (len(node.inputs) > 3 and node.inputs[3] is not None):  # noqa: PLR2004
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:  # noqa: PLR2004
        return 0.0
    value = constant(node.inputs[2])
    return None if value is None else float(value.item())


def _pads_so(layer: ir.Node, value: float, pads: list[int], padded: ir.Value) -> bool:
    """True if a layer itself can pad what it reads with this number."""
    automatic = layer.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() != "NOTSET":
        return False
    if layer.op_type == "Conv":
        return value == 0
    own, kernel, up = (layer.attributes.get(name) for name in ("pads", "kernel_shape", "ceil_mode"))
    if layer.op_type != "MaxPool" or kernel is None or (up is not None and up.as_int()):
        return False
    sides = [*kernel.as_ints(), *kernel.as_ints()]  # a window has to hold a value
    return (
        not (own is not None and any(own.as_ints()))
        and value <= _least(padded)
        and all(pad < side for pad, side in zip(pads, sides, strict=True))
    )


def _least(value: ir.Value) -> float:
    """The least that a tensor on a grid can be; without end for others."""
    node = maker(value)
    if node is None or node.op_type != DEQUANTIZE:
        return -math.inf
    scale, zero_point = constant(source(node, 1)), constant(source(node, 2))
    if scale is None or zero_point is None or scale.size != 1:
        return -math.inf
    return float((np.iinfo(zero_point.dtype).min - float(zero_point.item())) * scale.item())


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
    directly behind it. Nothing is put where the codes end at the bound anyway. Values are cut off before codes of 16
    bits, for ONNX Runtime has no Clip for these.
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
        if zero_point.dtype != np.uint8 and (low > 0 or high < np.iinfo(zero_point.dtype).max):
            limits = [
                initializer(graph, f"{name}/{end}", np.array((code - float(zero_point)) * scale, np.float32))
                for end, code in (("low", low), ("high", high))
            ]
            clip = ir.node("Clip", [source(node), *limits], name=f"{name}/clip")
            typed(output(clip), ir.DataType.FLOAT)
            output(clip).shape = source(node).shape
            node.replace_input_with(0, output(clip))
            graph.insert_before(node, clip)
        elif low > 0 or high < np.iinfo(zero_point.dtype).max:
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
        for index, moved in enumerate(node.outputs[:1] if node.op_type == "MaxPool" else node.outputs):
            place = f"{node.name or moved.name}/{index}"
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
    """True if all that an operator gives are values of its first input, or zeros, which all grids have."""
    if node.op_type == "Pad":
        mode = node.attributes.get("mode")
        return (mode is not None and mode.as_string() != "constant") or _padding(node) == 0
    if node.op_type == "Resize":
        texts = {
            name: each.as_string() for name, each in node.attributes.items() if each.type == ir.AttributeType.STRING
        }
        nearest = texts.get("mode", "nearest") == "nearest"
        return nearest and texts.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    if node.op_type == "Concat":
        return _on_one_grid(node)
    return node.op_type in MOVES


def _on_one_grid(node: ir.Node) -> bool:
    """True if all inputs of an operator are on the same grid, as the parts are of which a roll is put together."""
    pairs = [maker(value) for value in node.inputs]
    grids = [
        [constant(value) for value in pair.inputs[1:]]
        for pair in pairs
        if pair is not None and pair.op_type == DEQUANTIZE and not is_weight(pair)
    ]
    return len(grids) == len(pairs) and all(
        ours is not None and theirs is not None and np.array_equal(ours, theirs)
        for grid in grids
        for ours, theirs in zip(grids[0], grid, strict=True)
    )


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
    graph, stored = model.graph, set[str]()
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
        stored.update(str(name).partition(CALL)[0] for name in layers)
    drop_unused(model)
    return len(stored)


def drop_unused(model: ir.Model) -> None:
    """Remove constants and operators that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def outputs_on_grids(graph: ir.Graph) -> list[bool]:
    """For each output of the network, if its values are on a grid."""
    return [is_made_by(value, DEQUANTIZE) for value in graph.outputs]
