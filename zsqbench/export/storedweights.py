"""Passes over the stored weights of an exported graph. Afterwards each call of a layer directly reads its integers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from zsqbench.export.graph import (
    CALL,
    DEQUANTIZE,
    LAYERS,
    called,
    constant,
    drop_unused,
    initializer,
    of_type,
    only_reader,
    output,
    readers,
    source,
    typed,
)
from zsqbench.export.symbols import LAYER

_TURNS = ("Reshape", "Transpose")
"""The operators that may be between a stored weight and its layer."""


def part_calls(graph: ir.Graph) -> None:
    """Give each call of a layer its own operators that make its weight."""
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
    """The operators that make weights from stored integers. Biases have 32 bits and do not count."""
    return [
        node
        for node in of_type(graph, DEQUANTIZE)
        if (codes := constant(source(node))) is not None and codes.dtype != np.int32
    ]


def _way(stored: ir.Node) -> list[ir.Node]:
    """The operator that makes a weight, and the operators between it and the layers that read it."""
    chain = [stored]
    while (follows := only_reader(output(chain[-1]))) is not None and follows.op_type in _TURNS:
        chain.append(follows)
    return chain


def name_layers(graph: ir.Graph) -> None:
    """Name each operator of a layer by the layer's path, with a number for further calls, and remove the marks."""
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


def turn_stored_weights(graph: ir.Graph) -> None:
    """Store a weight in the form that its layer reads, if a transposition or a similar operator is in between."""
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
    """An array after operators that move values. None: not known yet."""
    for node in chain:
        if node.op_type == "Transpose":
            array = array.transpose(node.attributes["perm"].as_ints())
        elif (shape := constant(source(node, 1))) is not None:
            array = array.reshape(shape)
        else:
            return None
    return array


def _channels_of(shape: tuple[int, ...], axis: int, chain: list[ir.Node]) -> int | None:
    """The axis of channels behind these operators. None: several axes, as for groups."""
    channels = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1 - axis))
    turned = _turned(np.broadcast_to(channels, shape), chain)
    assert turned is not None  # noqa: S101 - it was computed before
    for place, size in enumerate(turned.shape):
        along = np.arange(size).reshape(-1, *[1] * (turned.ndim - 1 - place))
        if size == shape[axis] and (turned == along).all():
            return place
    return None


def part_stored_weights(graph: ir.Graph) -> None:
    """Give each weight, at each call of its layer, its own integers and zero points.

    The exporter shares equal constants. A runtime that makes signed weights unsigned changes a shared constant for each
    weight, and fails at the second.
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


def store_in_four_bits(model: ir.Model, bits: Callable[[str], int]) -> int:
    """Store the weights of layers with up to 4 bits as INT4, by the layer's path. Returns the number of layers."""
    graph, stored = model.graph, set[str]()
    for node in of_type(graph, DEQUANTIZE):
        codes = constant(source(node))
        layers = [reader.name for reader in readers(output(node)) if reader.op_type in LAYERS]
        if codes is None or codes.dtype != np.int8 or not layers or bits(str(layers[0]).partition(CALL)[0]) > 4:  # noqa: PLR2004
            continue
        for index in range(0, len(node.inputs), 2):  # codes and, if there is one, the zero point
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
