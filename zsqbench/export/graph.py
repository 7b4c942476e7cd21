"""Helpers for onnx-ir: constants, readers, and new operators."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

CALL = "#"
CODES = "/codes"
"""The integers of a tensor are a value with the tensor's name and this ending."""
ROUNDING = "/quantize"
"""The operator that makes the integers has the tensor's name with this ending."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators for layers with weights."""

MOVES = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMin",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""The operators that only move values, so their output is on the grid of their input. For Concat, Pad and Resize this
depends on their inputs."""


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The content of a value that does not depend on the image. None: it depends on it."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def readers(value: ir.Value) -> list[ir.Node]:
    """The operators that read a value."""
    return [use.node for use in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The only operator that reads a value. None: several read it, or it is an output of the network."""
    nodes = readers(value)
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def output(node: ir.Node) -> ir.Value:
    """The first output of an operator."""
    return node.outputs[0]


def source(node: ir.Node, index: int = 0) -> ir.Value:
    """An input of an operator. It must exist."""
    value = node.inputs[index]
    assert value is not None  # noqa: S101 - the callers ask for what their operator demands
    return value


def maker(value: ir.Value | None) -> ir.Node | None:
    """The operator that makes a value."""
    return None if value is None else value.producer()


def typed(value: ir.Value, like: ir.Value | ir.DataType) -> None:
    """Set the type of a new value."""
    value.type = like.type if isinstance(like, ir.Value) else ir.TensorType(like)


def put_after(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put a chain of operators behind a value. All its readers, and the network's output, then read the chain's end."""
    end = output(nodes[-1])
    end.shape = value.shape
    place = maker(value)
    if place is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(place, nodes)
    for use in list(value.uses()):
        if use.node not in nodes:
            use.node.replace_input_with(use.idx, end)
    if value.is_graph_output():
        name = value.name
        value.name, end.name = f"{name}/before", name
        graph.outputs[graph.outputs.index(value)] = end


def initializer(graph: ir.Graph, name: str, array: NDArray[Any], *, own: bool = False) -> ir.Value:
    """A constant with this content in the graph, under this name or, if the name is taken, under a similar name.

    An existing constant with the same name and content is used, unless the constant must not be shared.
    """
    free, number = name, 1
    while free in graph.initializers:
        there = constant(graph.initializers[free])
        if not own and there is not None and there.dtype == array.dtype and np.array_equal(there, array):
            return graph.initializers[free]
        free, number = f"{name}_{number}", number + 1
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def of_type(graph: ir.Graph, *operators: str) -> Iterator[ir.Node]:
    """The operators of these types, in order. The graph may be changed meanwhile."""
    yield from [node for node in graph if node.op_type in operators]


def called(name: str, calls: dict[str, int]) -> str:
    """The name of the next call of a layer or a quantizer: first the plain name, then the name with a number."""
    number = calls[name] = calls.get(name, -1) + 1
    return f"{name}{CALL}{number}" if number else name


def is_product(node: ir.Node) -> bool:
    """True if an operator multiplies two matrices that the network computes. Neither is the weight of a layer."""
    return node.op_type == "MatMul" and not any(_is_stored(source(node, index)) for index in (0, 1))


def _is_stored(value: ir.Value) -> bool:
    """True if a value is a constant, or a weight that is made from a constant."""
    node = maker(value)
    while node is not None and node.op_type in (DEQUANTIZE, "Cast", "Reshape", "Transpose"):
        value, node = source(node), maker(source(node))
    return node is None and not value.is_graph_input()


def is_weight(dequantize: ir.Node) -> bool:
    """True if a DequantizeLinear reads stored integers, not a tensor that the network computes."""
    return constant(source(dequantize)) is not None


def drop_unused(model: ir.Model) -> None:
    """Remove constants and operators without readers."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
