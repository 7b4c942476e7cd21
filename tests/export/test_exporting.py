"""Files that are written: what they hold besides the network, and what cannot be written."""

import json
import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exportnets import EVEN, SIZE, SMALL, exported, images, pretrained, student_of
from networks import from_forward
from torch import nn

from zsqbench import Pretrained
from zsqbench.errors import ZSQBenchError
from zsqbench.export import exporting, runtime
from zsqbench.export.exporting import Description, export_float, export_student, output_names


def test_a_file_says_how_it_is_fed_and_what_its_outputs_are():
    file = exported("shared", "qdq/w8a8")
    told = {name: json.loads(text) for name, text in ir.load(file.path).metadata_props.items()}
    assert told.keys() == {"zsqbench.preprocessing", "zsqbench.outputs", "zsqbench.origin"}
    assert told["zsqbench.preprocessing"] == {
        "input_size": [3, 8, 8],
        "mean": [0.4] * 3,
        "std": [0.25] * 3,
        "value_range": [0.0, 1.0],
    }
    places = {"output_0": "['scores']", "output_1": "['boxes'][0]", "output_2": "['boxes'][1]", "output_3": "['mask']"}
    assert told["zsqbench.outputs"] == file.file.outputs == places
    assert [value.name for value in file.graph().outputs] == list(places)


@pytest.mark.slow("it writes another file")
def test_outputs_have_the_names_that_the_network_gives_them():
    net = from_forward(lambda net, x: (net.a(x), net.b(x)), a=nn.Conv2d(3, 1, 1), b=nn.Conv2d(3, 2, 1))
    told = Pretrained(net, SIZE, *EVEN, outputs=("boxes", "scores"))
    assert output_names(net, told) == {"output_0": "boxes", "output_1": "scores"}
    assert output_names(net, Pretrained(net, SIZE, *EVEN)) == {"output_0": "[0]", "output_1": "[1]"}
    one = exported("bounded", "qdq/w8a8")
    assert one.file.outputs == {"output": "logits"}


def test_names_of_classes_and_the_origin_are_kept():
    description = Description(pretrained("bounded"), ("a", "b", "c", "d"), {"cell": "x:y"})
    told = description.metadata({"output": "logits"})
    assert json.loads(told["zsqbench.classes"]) == ["a", "b", "c", "d"]
    assert json.loads(told["zsqbench.origin"]) == {"cell": "x:y"}


@pytest.mark.parametrize(
    ("name", "scheme", "options"),
    [("bounded", "qdq/w8a8", {}), ("shared", "qdq/w8a8", {}), ("moving", "qdq/w4a8", SMALL)],
)
def test_files_are_valid_and_of_the_pinned_versions_and_bear_no_trace_of_the_machine(name, scheme, options):
    path = exported(name, scheme, **options).path
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.ir_version, [(each.domain, each.version) for each in proto.opset_import]) == (10, [("", 21)])
    assert (proto.producer_name, proto.producer_version, list(proto.functions)) == ("zsqbench", "", [])
    content = path.read_bytes()
    assert [trace for trace in (b"torch", b"zsqbench_", b"site-packages", b"/work", b"/home") if trace in content] == []
    assert str(exporting.__file__).encode() not in content
    assert all(not node.doc_string and not node.metadata_props for node in proto.graph.node)


def test_a_relu_before_a_grid_is_gone_and_relu6_is_where_its_grid_ends_above_it():
    file = exported("bounded", "qdq/w8a8")
    kinds = [node.op_type for node in file.graph()]
    assert "Relu" not in kinds
    names = [node.name for node in file.graph() if node.op_type == "Clip"]
    assert set(names) <= {"relu6/clip", "relu6_1/clip"}
    straight = [node.op_type for node in exported("straight", "pot/w8a8").graph()]
    assert {"Relu", "Clip", "Pad", "ReduceMean"}.isdisjoint(straight)
    assert "GlobalAveragePool" in straight
    four = [node.op_type for node in exported("straight", "hast/w4a4").graph()]
    assert four.count("Clip") == 3  # tensors


def test_a_layers_padding_and_that_before_it_are_one():
    convs = {node.name: node for node in exported("moving", "qdq/w4a8", **SMALL).graph() if node.op_type == "Conv"}
    assert convs["stem"].attributes["pads"].as_ints() == (0, 0, 1, 1)
    assert convs["right"].attributes["pads"].as_ints() == (1, 1, 1, 1)


def test_files_of_pixels_of_one_mean_take_them_as_they_are():
    graph = exported("moving", "qdq/w4a8", **SMALL).graph()
    (image,) = graph.inputs
    assert (image.name, image.dtype, image.shape[1:]) == ("pixels", ir.DataType.UINT8, (3, 8, 8))
    assert {"Cast", "Sub", "Mul"}.isdisjoint(node.op_type for node in graph)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    of = pretrained("bounded")
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    return of, export_float(of.module, Description(of), path)


def test_a_float_network_is_written_to_compare_with(plain):
    of, made = plain
    with torch.no_grad():
        expected = of.module(images(of, 5)).numpy()
    found = runtime.run(runtime.open_session(made.path), images(of, 5))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert made.size_mb == made.path.stat().st_size / 1e6
    assert "QuantizeLinear" not in {node.op_type for node in ir.load(made.path).graph}


def complaint(call):
    with pytest.raises(ZSQBenchError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_operator_that_onnx_lacks_is_one_line_that_names_it(tmp_path):
    net = from_forward(lambda net, x: torch.linalg.inv(net.conv(x) + torch.eye(8)), conv=nn.Conv2d(3, 2, 1))
    text = complaint(lambda: export_float(net, Description(Pretrained(net, SIZE, *EVEN)), tmp_path / "x.onnx"))
    assert text.startswith("the network cannot be written as ONNX: ")
    assert "inv" in text
    assert not (tmp_path / "x.onnx").exists()


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch):
    file = exported("bounded", "qdq/w8a8")
    model = ir.load(file.path)
    monkeypatch.setattr(exporting, "_exported", lambda *_: (model, file.file.outputs))
    monkeypatch.setattr(exporting, "tidy", lambda _: None)
    (tmp_path / "folder.onnx").mkdir()
    text = complaint(lambda: export_student(file.student, Description(file.of), tmp_path / "folder.onnx"))
    assert text == f"cannot write {tmp_path / 'folder.onnx'}: Is a directory; give another file"


def test_a_student_of_another_library_is_one_line(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    text = complaint(lambda: export_student(net, Description(Pretrained(net, SIZE, *EVEN)), tmp_path / "x.onnx"))
    assert text == (
        "the quantized network is a Sequential, not one that zsqbench.quant.prepare made; only those can be exported"
    )


def test_a_network_that_fails_on_what_it_is_shown_is_one_line(tmp_path):
    net = from_forward(lambda net, x: torch.linalg.inv(0 * net.conv(x)), conv=nn.Conv2d(3, 2, 1))
    text = complaint(lambda: export_float(net, Description(Pretrained(net, SIZE, *EVEN)), tmp_path / "x.onnx"))
    assert text.startswith("the network cannot be written as ONNX: _LinAlgError: linalg.inv: ")


def test_a_grid_without_zero_is_refused_before_anything_is_written(tmp_path):
    of = pretrained("straight")
    student = student_of(of, "hw_strict/w8a8")
    with torch.no_grad():
        student.get_submodule("last").weight_quantizer.zero_point += 300
    text = complaint(lambda: export_student(student, Description(of), tmp_path / "x.onnx"))
    assert "the grid of weight 'last' does not hold zero" in text
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_is_quiet(caplog):
    with caplog.at_level(logging.WARNING):
        logger = logging.getLogger("torch.onnx")
        before = logger.level
        with exporting._quiet():
            logger.warning("its own insides")
        assert logger.level == before
    assert "insides" not in caplog.text
