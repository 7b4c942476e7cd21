"""Passes over graphs that are written down here: what they compute before and after, and which form they have."""

import re

import numpy as np
import onnx_ir as ir
import pytest
from exportnets import EVEN, UNEVEN, exported, pixels
from onnxgraphs import PAIR, changed, model, opened, types

from zsqbench.export import runtime
from zsqbench.export.exporting import _pixels
from zsqbench.export.graph import DEQUANTIZE, QUANTIZE, constant
from zsqbench.export.tidying import feed_pixels, fold_pads, pool_globally, repeat_behind_moves, tidy


def test_zeros_around_what_a_convolution_reads_are_its_own_padding():
    made = changed(PAIR + "p = Pad (x, alike)\noutput = Conv <pads=[1, 1, 0, 0]> (p, w)", fold_pads)
    assert types(made) == [QUANTIZE, DEQUANTIZE, "Conv"]
    assert made.graph[-1].attributes["pads"].as_ints() == (2, 1, 0, 2)


@pytest.mark.parametrize(
    "body",
    [
        "p = Pad (x, sides, one)\noutput = Conv (p, w)",
        'p = Pad <mode="edge"> (x, sides)\noutput = Conv (p, w)',
        "p = Pad (x, sides)\na = Conv (p, w)\noutput = Add (a, p)",
        'p = Pad (x, sides)\noutput = Conv <auto_pad="SAME_UPPER"> (p, w)',
        "p = Pad (x, sides)\noutput = MaxPool <kernel_shape=[3, 3]> (p)",
        "p = Pad (x, sides, low)\noutput = MaxPool <kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]> (p)",
        "p = Pad (x, sides, low)\noutput = MaxPool <kernel_shape=[1, 1]> (p)",
        "p = Pad (x, sides, low)\noutput = AveragePool <kernel_shape=[2, 2]> (p)",
    ],
)
def test_other_padding_stays(body):
    assert "Pad" in types(changed(PAIR + body, fold_pads))


def test_what_no_value_is_below_is_max_poolings_own_padding():
    made = changed(
        PAIR + "p = Pad (x, sides, low)\noutput = MaxPool <kernel_shape=[3, 3], strides=[2, 2]> (p)", fold_pads
    )
    assert types(made) == [QUANTIZE, DEQUANTIZE, "MaxPool"]


MOVES = {
    "zeros around": ("p = Pad (x, sides)", True),
    "zeros around, written": ("p = Pad (x, sides, zero)", True),
    "ones around": ("p = Pad (x, sides, one)", False),
    "edges around": ('p = Pad <mode="edge"> (x, sides)', True),
    "nearest": ('p = Resize <mode="nearest", coordinate_transformation_mode="asymmetric"> (x, , scales)', True),
    "linear": ('p = Resize <mode="linear"> (x, , scales)', False),
    "max-pooling": ("p = MaxPool <kernel_shape=[2, 2]> (x)", True),
    "average-pooling": ("p = AveragePool <kernel_shape=[2, 2]> (x)", False),
    "largest": ("p = ReduceMax <keepdims=1> (x, places)", True),
    "transposed": ("p = Transpose <perm=[0, 1, 3, 2]> (x)", True),
    "cut": ("p = Slice (x, from, to, axis)", True),
    "one grid": ("a = Transpose <perm=[0, 1, 3, 2]> (x)\np = Concat <axis=2> (a, x)", True),
    "two grids": (
        "yq = QuantizeLinear (image, t, z)\ny = DequantizeLinear (yq, t, z)\np = Concat <axis=2> (x, y)",
        False,
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_pairs_are_repeated_behind_what_only_moves_values_and_nothing_else(name):
    body, moves = MOVES[name]
    made = changed(PAIR + body + "\noutput = Neg (p)", repeat_behind_moves)
    last = made.graph[-1]
    assert last.op_type == "Neg"
    assert (last.inputs[0].producer().op_type == DEQUANTIZE) == moves


def test_no_pair_is_put_before_a_rounding_to_another_grid():
    body = (
        PAIR
        + "p = MaxPool <kernel_shape=[2, 2]> (x)\nq = QuantizeLinear (p, t, z)\noutput = DequantizeLinear (q, t, z)"
    )
    assert len(types(changed(body, repeat_behind_moves))) == 5


def test_outputs_that_are_moved_stay_where_they_are():
    made = changed(PAIR + "p = Neg (x)\noutput = Transpose <perm=[0, 1, 3, 2]> (x)", repeat_behind_moves)
    assert types(made)[-1] == "Transpose"


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("end", ["", "q = QuantizeLinear (m, t, z)\nd = DequantizeLinear (q, t, z)\n"])
@pytest.mark.parametrize("behind", ["Neg", None])
def test_a_mean_over_height_and_width_is_global_pooling(kept, end, behind):
    body = PAIR + f"m = ReduceMean <keepdims={kept}> (x, places)\n{end}"
    last = "d" if end else "m"
    body = body + f"output = Neg ({last})" if behind else re.sub(rf"\b{last} = ", "output = ", body)
    made = changed(body, tidy, "float[N,2,1,1]" if kept else "float[N,2]")
    assert "ReduceMean" not in types(made)
    assert "GlobalAveragePool" in types(made)
    if end and not kept:  # no floats between pooling and rounding
        pooled = next(node for node in made.graph if node.op_type == "GlobalAveragePool")
        assert [use.node.op_type for use in pooled.outputs[0].uses()] == [QUANTIZE]


@pytest.mark.parametrize("mean", ["ReduceMean <keepdims=1> (x, axis)", "ReduceMean (x)"])
def test_other_means_stay(mean):
    output = "float[N,2,1,6]" if "axis" in mean else "float[1,1,1,1]"
    assert "ReduceMean" in types(changed(PAIR + f"output = {mean}", pool_globally, output))


@pytest.mark.parametrize(
    ("name", "scheme", "feeding"), [("bounded", "qdq/w8a8", EVEN), ("straight", "pot/w8a8", UNEVEN)]
)
def test_a_file_of_pixels_computes_what_the_file_of_images_does(tmp_path, name, scheme, feeding):
    of = exported(name, scheme).of
    mean, std = feeding
    made = ir.load(exported(name, scheme).path)
    numbers = (np.array(mean) * 255, 1 / 255 / np.array(std))
    before = types(made)
    feed_pixels(made, *numbers)
    given = pixels(8)
    normalised = ((given.numpy() / 255 - by_channel(mean)) / by_channel(std)).astype(np.float32)
    plain = runtime.run(runtime.open_session(exported(name, scheme).path, optimized=False), normalised)
    ours = runtime.run(opened(made), given)
    inside = {"Cast", "Sub", "Mul"} & set(types(made)) - set(before)
    if feeding == EVEN:
        assert inside == set()
        assert types(made) == before[1:]
        np.testing.assert_array_equal(plain[0], ours[0])
    else:
        assert inside == {"Cast", "Sub", "Mul"}
        np.testing.assert_allclose(plain[0], ours[0], atol=3 * step_of(exported(name, scheme)))
    assert np.allclose(numbers[0], _pixels(of)[0]) == (feeding == EVEN)


def by_channel(values):
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def step_of(file):
    (last,) = [value.producer() for value in file.graph().outputs]
    return float(constant(last.inputs[1]))


def test_pixels_whose_grid_has_other_steps_are_computed_inside():
    made = model(PAIR + "output = Neg (x)")
    feed_pixels(made, np.array([40.0, 40.0]), np.array([0.02, 0.021]))
    assert types(made)[:4] == ["Cast", "Sub", "Mul", QUANTIZE]
    made = model(PAIR + "output = Neg (x)")
    feed_pixels(made, np.array([40.0, 40.0]), np.array([0.02, 0.02]))
    assert types(made) == [DEQUANTIZE, "Neg"]
    assert (made.graph.inputs[0].name, made.graph.inputs[0].dtype) == ("pixels", ir.DataType.UINT8)


def test_an_image_that_several_read_becomes_pixels_for_all():
    made = model("a = Neg (image)\nb = Abs (image)\noutput = Add (a, b)")
    feed_pixels(made, np.array([10.0, 20.0]), np.array([0.5, 0.25]))
    given = np.random.default_rng(0).integers(0, 255, (2, 2, 6, 6), np.uint8)
    x = (given - np.array([10.0, 20.0], np.float32).reshape(1, 2, 1, 1)) * np.array([0.5, 0.25], np.float32).reshape(
        1, 2, 1, 1
    )
    found = runtime.run(opened(made), given)[0]
    np.testing.assert_allclose(found, np.abs(x) - x, rtol=1e-6)
