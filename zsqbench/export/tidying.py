"""Passes over an exported graph. Afterwards integer runtimes find the operators that they can run with integers.

Each pass only changes the form of the graph. The computed values stay the same.
"""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from zsqbench.export.bounds import clip_codes
from zsqbench.export.graph import (
    DEQUANTIZE,
    LAYERS,
    MOVES,
    QUANTIZE,
    ROUNDING,
    constant,
    drop_unused,
    initializer,
    is_product,
    is_weight,
    maker,
    of_type,
    only_reader,
    output,
    put_after,
    readers,
    source,
    typed,
)
from zsqbench.export.storedweights import name_layers, part_calls, part_stored_weights, turn_stored_weights


def tidy(model: ir.Model) -> None:
    """Change a graph from torch's exporter into the form that runtimes fuse, in place."""
    graph = model.graph
    names = [value.name for value in graph.outputs]
    part_calls(graph)
    name_layers(graph)
    turn_stored_weights(graph)
    part_stored_weights(graph)
    fold_pads(graph)
    pool_globally(graph)
    clip_codes(graph)
    name_products(graph)
    repeat_behind_moves(graph)
    drop_unused(model)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name  # another operator may make the value by now


def name_products(graph: ir.Graph) -> None:
    """Give each product of two tensors the name of the first tensor that is rounded behind it."""
    for node in [each for each in of_type(graph, "MatMul") if is_product(each)]:
        behind = only_reader(output(node))
        while behind is not None and behind.op_type not in (QUANTIZE, *LAYERS):
            behind = only_reader(output(behind))
        if behind is not None and behind.op_type == QUANTIZE:
            node.name = str(behind.name).removesuffix(ROUNDING)


def fold_pads(graph: ir.Graph) -> None:
    """Replace a Pad by the padding of a convolution (zeros) or of max-pooling (the least value)."""
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
    """The number that a Pad puts around its input. None: it repeats values, or pads chosen axes."""
    mode = node.attributes.get("mode")
    if (mode is not None and mode.as_string() != "constant") or (len(node.inputs) > 3 and node.inputs[3] is not None):  # noqa: PLR2004
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:  # noqa: PLR2004
        return 0.0
    value = constant(node.inputs[2])
    return None if value is None else float(value.item())


def _pads_so(layer: ir.Node, value: float, pads: list[int], padded: ir.Value) -> bool:
    """True if a layer can pad its input with this number itself."""
    automatic = layer.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() != "NOTSET":
        return False
    if layer.op_type == "Conv":
        return value == 0
    own, kernel, up = (layer.attributes.get(name) for name in ("pads", "kernel_shape", "ceil_mode"))
    if layer.op_type != "MaxPool" or kernel is None or (up is not None and up.as_int()):
        return False
    sides = [*kernel.as_ints(), *kernel.as_ints()]  # a window must hold a value
    return (
        not (own is not None and any(own.as_ints()))
        and value <= _least(padded)
        and all(pad < side for pad, side in zip(pads, sides, strict=True))
    )


def _least(value: ir.Value) -> float:
    """The least value of a tensor on a grid. Minus infinity for other tensors."""
    node = maker(value)
    if node is None or node.op_type != DEQUANTIZE:
        return -math.inf
    scale, zero_point = constant(source(node, 1)), constant(source(node, 2))
    if scale is None or zero_point is None or scale.size != 1:
        return -math.inf
    return float((np.iinfo(zero_point.dtype).min - float(zero_point.item())) * scale.item())


def pool_globally(graph: ir.Graph) -> None:
    """Replace a mean over height and width by GlobalAveragePool, because runtimes have it for integers."""
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
    """Round a pooled tensor before it is flattened, so that no operator between has floats. A later pass repeats it."""
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


def repeat_behind_moves(graph: ir.Graph) -> None:
    """Repeat the pair of a tensor behind each operator that only moves values, so that runtimes move integers."""
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
    """True if an operator only returns values of its first input, or zeros. All grids have zero."""
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
    """True if all inputs of an operator are on the same grid, such as the parts of a roll."""
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


def feed_pixels(model: ir.Model, mean: NDArray[Any], scale: NDArray[Any]) -> None:
    """Let a network take pixels of 8 bits: the file computes x = (pixel - mean) * scale for each channel.

    `mean` and `scale` are [C], in pixels. If the codes of the image's grid are these pixels, they are used directly.
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
