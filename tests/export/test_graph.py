"""Small helpers over graphs."""

import numpy as np
import onnx_ir as ir
from onnxgraphs import PAIR, computed, model, types

from zsqbench.export.graph import constant, initializer, only_reader, put_after, readers


def test_constants_of_one_content_are_one_unless_one_is_to_be_nobody_elses():
    graph = model(PAIR + "output = Neg (x)").graph
    one = initializer(graph, "one_more", np.array([1, 2], np.int8))
    assert initializer(graph, "one_more", np.array([1, 2], np.int8)) is one
    others = [
        initializer(graph, "one_more", np.array([1, 2], np.uint8)),
        initializer(graph, "one_more", np.array([1, 3], np.int8)),
        initializer(graph, "one_more", np.array([1, 2], np.int8), own=True),
    ]
    assert [value.name for value in others] == ["one_more_1", "one_more_2", "one_more_3"]
    assert constant(others[1]).tolist() == [1, 3]


def test_the_only_reader_of_a_value_is_none_where_the_network_returns_it_too():
    graph = model(PAIR + "output = Neg (x)\na = Abs (output)").graph
    assert [node.op_type for node in readers(graph.outputs[0])] == ["Abs"]
    assert only_reader(graph.outputs[0]) is None
    assert only_reader(graph.outputs[0].producer().inputs[0]).op_type == "Neg"
    assert constant(graph.outputs[0]) is None
    assert constant(None) is None


def test_what_is_put_behind_a_value_is_read_in_its_place_and_returned_under_its_name():
    made = model(PAIR + "output = Neg (x)\na = Abs (output)")
    value = made.graph.outputs[0]
    before = computed(model(PAIR + "output = Neg (x)"))[0]
    twice = [ir.node("Neg", [value], name="first")]
    twice.append(ir.node("Neg", [twice[0].outputs[0]], name="second"))
    put_after(made.graph, value, twice)
    assert [each.name for each in made.graph.outputs] == ["output"]
    assert types(made)[2:] == ["Neg", "Neg", "Neg", "Abs"]
    assert made.graph[-1].inputs[0] is made.graph.outputs[0]
    made.graph.outputs[0].type = value.type
    np.testing.assert_array_equal(computed(made)[0], before)


def test_what_is_put_behind_the_image_is_read_by_all_that_read_it():
    made = model("a = Neg (image)\noutput = Add (a, image)")
    image = made.graph.inputs[0]
    put_after(made.graph, image, [ir.node("Abs", [image], name="first")])
    assert types(made) == ["Abs", "Neg", "Add"]
    assert not computed(made)[0].any()
