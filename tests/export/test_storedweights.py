"""Weights as a file stores them: for each call, as layers read them, in eight bits or four."""

import numpy as np
import onnx_ir as ir
from exportnets import exported, pixels
from onnxgraphs import CONSTANTS, HEAD, PAIR, computed, images, opened, parsed

from zsqbench.export import runtime
from zsqbench.export.graph import DEQUANTIZE, constant
from zsqbench.export.tidying import tidy

WEIGHTS = (
    ", int8[2,3] codes = {1, 2, 3, 100, -5, 6}, float[2] steps = {0.5, 0.25}, int8[2] mid = {0, 0}, int8[2,2,1,1] taps "
    "= {1, -2, 120, 4}"
)


def test_each_call_of_a_layer_has_integers_of_its_own():
    mark = '<zsqbench_layer="layer", axis=0>'
    body = (
        PAIR + f"k = DequantizeLinear {mark} (taps, steps, mid)\na = Conv (x, k)\naq = QuantizeLinear (a, t, z)\n"
        "ad = DequantizeLinear (aq, t, z)\nb = Conv (ad, k)\nbq = QuantizeLinear (b, t, z)\n"
        "output = DequantizeLinear (bq, t, z)"
    )
    made = weighted(body)
    before = computed(weighted(body.replace(mark, "<axis=0>")))
    tidy(made)
    np.testing.assert_array_equal(computed(made)[0], before[0])
    convs = [node for node in made.graph if node.op_type == "Conv"]
    assert [node.name for node in convs] == ["layer", "layer#1"]
    stored = [node.inputs[1].producer() for node in convs]
    for index in (0, 2):
        assert stored[0].inputs[index] is not stored[1].inputs[index]
    # as users open it, and where signed integers are turned into unsigned ones
    np.testing.assert_allclose(runtime.run(opened(made, optimized=True), images())[0], before[0], atol=0.031)


def weighted(body, output="float[N,c,h,w]"):
    text = HEAD.replace("OUTPUT", output).replace("CONSTANTS", CONSTANTS + WEIGHTS) + "{\n" + body + "\n}"
    return parsed(text)


def test_a_weight_of_a_product_is_stored_as_it_is_multiplied():
    body = (
        'lines = Reshape (image, back)\nk = DequantizeLinear <zsqbench_layer="layer", axis=0> (codes, steps, mid)\n'
        "kt = Transpose <perm=[1, 0]> (k)\noutput = MatMul (lines, kt)"
    ).replace("back", "three")
    text = body.replace('zsqbench_layer="layer", ', "")
    made, before = (weighted_lines(each) for each in (body, text))
    tidy(made)
    np.testing.assert_array_equal(computed(made)[0], computed(before)[0])
    product = made.graph[-1]
    stored = product.inputs[1].producer()
    assert (product.name, stored.op_type, stored.attributes["axis"].as_int()) == ("layer", DEQUANTIZE, 1)
    assert constant(stored.inputs[0]).tolist() == [[1, 100], [2, -5], [3, 6]]


def weighted_lines(body):
    head = HEAD.replace("OUTPUT", "float[N,24,2]").replace(
        "CONSTANTS", CONSTANTS + WEIGHTS + ", int64[3] three = {-1, 24, 3}"
    )
    return parsed(head + "{\n" + body + "\n}")


def test_transposed_convolutions_store_the_weight_that_they_read_unless_groups_part_its_channels():
    graph = exported("shared", "qdq/w8a8").graph()
    made = {node.name: node for node in graph if node.op_type == "ConvTranspose"}
    assert made.keys() == {"up", "grouped"}
    stored = made["up"].inputs[1].producer()
    assert (stored.op_type, stored.attributes["axis"].as_int()) == (DEQUANTIZE, 1)
    assert made["grouped"].inputs[1].producer().op_type == "Reshape"


def test_four_bits_give_the_same_outputs_and_leave_no_integers_of_eight():
    file = exported("moving", "qdq/w4a8", input="uint8", weights="int4")
    stored = [node for node in file.graph() if node.op_type == DEQUANTIZE and constant(node.inputs[0]) is not None]
    kinds = {str(node.inputs[0].dtype) for node in stored}
    assert kinds == {"INT4", "INT32"}
    assert all(value.dtype != ir.DataType.INT8 for value in file.graph().initializers.values())
    assert "7 layers have weights of 4 bits" in file.file.notes[0]
    wide = ir.load(file.path)
    for value in wide.graph.initializers.values():
        if value.dtype == ir.DataType.INT4:
            value.const_value = ir.tensor(constant(value).astype(np.int8), name=value.name)
            value.type = ir.TensorType(ir.DataType.INT8)
    given = pixels(8)
    both = [runtime.run(opened(each), given)[0] for each in (ir.load(file.path), wide)]
    np.testing.assert_array_equal(*both)
    assert ir.to_proto(wide).ByteSize() > file.path.stat().st_size
