"""Which layers run with integers, and why others do not."""

import onnx_ir as ir
import pytest
from exportnets import SMALL, exported

from zsqbench.errors import ZSQBenchError
from zsqbench.export.graph import QUANTIZE, of_type
from zsqbench.export.runtime import CPU
from zsqbench.export.structure import Layer, Structure, _path, expected_structure, structure_in_runtime

FLOAT_INPUT = "its input is not quantized"


def islands(path):
    return {layer.path: layer.island for layer in expected_structure(path).layers if layer.island}


def test_all_layers_of_qdq_are_expected_to_run_with_integers_and_do():
    for name, layers in {"bounded": 4, "gated": 5}.items():
        found = structure_in_runtime(exported(name, "qdq/w8a8").path)
        assert (found.expected, found.integer, len(found.layers), found.missed) == (layers, layers, layers, [])
        assert found.lines() == [f"{layers} of {layers} layers run with integers"]


def test_islands_have_reasons(tmp_path):
    transposed = "runtimes have no transposed convolution on integers"
    assert islands(exported("shared", "qdq/w8a8").path) == {"up": transposed, "grouped": transposed}
    assert islands(exported("straight", "hast/w4a4").path) == {
        "stem": FLOAT_INPUT, "deep": "its output is not quantized before BatchNormalization", "head": FLOAT_INPUT,
    }  # fmt: skip
    wide = "its input has the type UINT16"
    model = ir.load(exported("bounded", "qdq/w8a8").path)
    for node in of_type(model.graph, QUANTIZE):
        node.outputs[0].dtype = ir.DataType.UINT16
    ir.save(model, tmp_path / "wide.onnx")
    assert set(islands(tmp_path / "wide.onnx").values()) == {wide}
    four = "its weight has the type INT4"
    assert set(islands(exported("moving", "qdq/w4a8", **SMALL).path).values()) == {four}


def test_lines_tell_layers_by_reason_and_affine_weights():
    found = structure_in_runtime(exported("straight", "hast/w4a4").path).lines()
    assert found[0] == "1 of 4 layers run with integers"
    assert found[1] == f"in float, because {FLOAT_INPUT}: stem, head"
    assert found[3].startswith(
        "4 layers have affine weights, with which integers are slower than floats; schemes with "
    )


def test_four_bit_weights_run_in_float():
    found = structure_in_runtime(exported("moving", "qdq/w4a8", **SMALL).path)
    assert (found.expected, found.integer, found.missed) == (0, 0, [])


def test_layers_that_are_missed_are_named():
    found = Structure((Layer("a", None, found=False), Layer("b", None, found=True), Layer("c", "why", found=False)))
    assert found.missed == ["a"]
    assert found.lines() == [
        "1 of 3 layers run with integers (2 were expected to)",
        "in float, because why: c",
        "in float, although nothing is in the way: a",
    ]


def test_what_other_providers_do_is_not_told():
    found = structure_in_runtime(exported("bounded", "qdq/w8a8").path, ("CUDAExecutionProvider", CPU))
    assert (found.is_known, found.missed, found.integer) == (False, [], 0)
    assert found.lines() == ["4 of 4 layers can run with integers; it is not known if they do"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("conv", "conv"),
        ("conv#1", "conv"),
        ("conv_quant", "conv"),
        ("conv#2_nchwc", "conv"),
        ("conv_token_17", "conv"),
        ("own_quant", "own_quant"),
        ("own_quant_quant", "own_quant"),
        ("other", "other"),
    ],
)
def test_operators_that_a_runtime_replaced_are_those_of_their_layers(name, path):
    assert _path(ir.node("Conv", [], name=name), {"conv", "own_quant"}) == path


def test_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_text("nothing")
    with pytest.raises(ZSQBenchError, match=r"x\.onnx is not a readable ONNX file: ") as error:
        expected_structure(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
