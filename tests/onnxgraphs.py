"""Graphs in ONNX's own text, and what they compute."""

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir

from zsqbench.export import graph, runtime
from zsqbench.export.tidying import tidy

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
