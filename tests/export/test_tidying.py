"""Passes over graphs that are written down here: what they compute before and after, and which form they have."""

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from exportnets import EVEN, UNEVEN, exported, pixels

from zsqbench.export import graph, runtime
from zsqbench.export.bounds import clip_codes
from zsqbench.export.exporting import _pixels
from zsqbench.export.graph import DEQUANTIZE, QUANTIZE, constant
from zsqbench.export.tidying import feed_pixels, fold_pads, pool_globally, repeat_behind_moves, tidy

MARKS = re.compile(r"<zsqbench_tensor[^>]*>")
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\nagraph (float[N,2,6,6] image) => (OUTPUT output)\n<CONSTANTS>\n'
CONSTANTS = (
    "float s = {0.02}, float t = {0.03}, uint8 z = {40}, uint8 none = {0}, float zero = {0.0}, float six = {6.0}, "
    "float[2,2,1,1] w = {0.5, -0.25, 1.0, 0.75}, float one = {1.0}, float low = {-1e30}, int64[8] sides = {0, 0, 1, 1, "
    "0, 0, 1, 1}, int64[8] alike = {0, 0, 1, 0, 0, 0, 0, 2}, int64[2] places = {2, 3}, float[4] scales = {1, 1, 2, 2}, "
    "uint16 wide = {0}, float[2,1,1] bounds = {0.5, 0.25}, int64[2] flat = {0, -1}, int64[1] from = {1}, int64[1] to = "
    "{3}, int64[1] axis = {2}"
)
PAIR = "xq = QuantizeLinear (image, s, z)\nx = DequantizeLinear (xq, s, z)\n"


def model(body, output="float[N,c,h,w]"):
    text = HEAD.replace("OUTPUT", output).replace("CONSTANTS", CONSTANTS) + "{\n" + body + "\n}"
    return parsed(text)


def parsed(text):
    """A graph of ONNX's own text, with shapes as an exporter gives them."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def images(count=3):
    return np.random.default_rng(0).normal(0, 2, (count, 2, 6, 6)).astype(np.float32)


def opened(made, *, optimized=False):
    """A session of a graph."""
    with tempfile.TemporaryDirectory() as folder:
        ir.save(made, Path(folder) / "made.onnx")
        return runtime.open_session(Path(folder) / "made.onnx", optimized=optimized)


def computed(made):
    return runtime.run(opened(made), images())


def types(made):
    return [node.op_type for node in made.graph]


def changed(body, change, output="float[N,c,h,w]"):
    """The graph after a pass, which computes the same before and after."""
    made = model(body, output)
    before = computed(model(MARKS.sub("", body), output))
    change(made if change in (tidy, graph.drop_unused) else made.graph)
    after = computed(made)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)
    assert [value.name for value in made.graph.outputs] == ["output"]
    return made


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


def rounding(before, value="r", grid="s, z", top=255):
    """Body of a graph that rounds to a marked grid behind a convolution and what cuts off."""
    mark = f'<zsqbench_tensor="name", zsqbench_top={top}>'
    return (
        f"c = Conv (image, w)\n{before}\nq = QuantizeLinear {mark} ({value}, {grid})\n"
        f"output = DequantizeLinear ({grid and 'q, ' + grid})"
    )


CLIPS = {
    # what cuts off, the grid, its largest code: the codes that are cut off at, or none
    "relu, zero inside": ("r = Relu (c)", "s, z", 255, (40, 255)),
    "relu, zero at the end": ("r = Relu (c)", "s, none", 255, None),
    "relu6 above the end": ("r = Clip (c, zero, six)", "s, none", 255, None),
    "relu6 below the end": ("r = Clip (c, zero, six)", "t, none", 255, (0, 200)),
    "one end": ("r = Clip (c, , one)", "t, z", 255, (0, 73)),
    "four bits": ("r = Relu (c)", "s, none", 15, (0, 15)),
    "least and most": ("a = Max (c, zero)\nr = Min (a, one)", "s, z", 255, (40, 90)),
    "in turn": ("a = Clip (c, one, six)\nr = Clip (a, zero, one)", "s, z", 255, (90, 90)),
    "in vain": ("a = Relu (c)\nr = Relu (a)", "s, none", 255, None),
}


@pytest.mark.parametrize("name", CLIPS)
def test_what_cuts_off_before_a_grid_cuts_codes_off_or_is_gone(name):
    before, grid, top, ends = CLIPS[name]
    body = rounding(before, grid=grid, top=top)
    if top != 255:  # without the marks, the grid of the same bits
        made = model(body)
        clip_codes(made.graph)
        codes = computed(made)[0] / 0.02
        assert (codes.min(), codes.max()) == (pytest.approx(0), pytest.approx(15))
    else:
        made = changed(body, clip_codes)
    clips = [node for node in made.graph if node.op_type == "Clip"]
    assert types(made) == ["Conv", QUANTIZE, *(["Clip"] if ends else []), DEQUANTIZE]
    assert [tuple(int(constant(value)) for value in node.inputs[1:]) for node in clips] == ([ends] if ends else [])
    assert made.graph[-1].inputs[0].name == "name/codes"
    assert not any("zsqbench" in name for node in made.graph for name in node.attributes)


def test_what_others_read_too_is_cut_off_as_values():
    body = rounding("r = Relu (c)").replace("output = Deq", "d = Deq") + "\noutput = Add (d, r)"
    assert types(changed(body, clip_codes)) == ["Conv", "Relu", QUANTIZE, DEQUANTIZE, "Add"]


def test_a_bound_for_each_channel_stays():
    assert "Min" in types(changed(rounding("r = Min (c, bounds)"), clip_codes))


def test_codes_of_sixteen_bits_are_cut_off_as_values():
    body = rounding("r = Clip (c, zero, one)", grid="s, wide", top=65535)
    made = changed(body, clip_codes)
    assert types(made) == ["Conv", "Clip", QUANTIZE, DEQUANTIZE]
    clipped = computed(made)[0]
    assert (clipped.min(), clipped.max()) == (0, pytest.approx(1))
    made = model(rounding("r = Relu (c)", grid="s, wide", top=15))
    clip_codes(made.graph)
    assert computed(made)[0].max() == pytest.approx(15 * 0.02)


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
