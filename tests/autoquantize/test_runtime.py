import pytest
import torch
from torch import nn
from zsqbench_plugins.rtn import RTN

from zsqbench.autoquantize.runtime import measure, on_threads
from zsqbench.methods import CalibrationSet, Pretrained
from zsqbench.quant import finalize
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context


@pytest.mark.slow("it exports two networks; test_quantize shows the whole command")
def test_a_file_is_compared_with_its_student_and_timed_beside_the_float_network(tmp_path):
    exporting = pytest.importorskip("zsqbench.export.exporting")
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    network, images = Pretrained(module, (3, 8, 8), (0.0,) * 3, (1.0,) * 3), torch.rand(6, 3, 8, 8)
    student = quantized(network, images)
    path = tmp_path / "net.onnx"
    exporting.export_student(student, exporting.Description(network), path)

    found = measure(path, student, network, images)

    assert (found.check.images, found.check.equal_exact, found.check.structure.integer) == (6, 6, 2)
    assert 0 < found.quantized.p50 <= found.quantized.p95
    assert found.unquantized.p50 > 0
    assert found.float_size_mb > 0.002


def quantized(network, images):
    """A finished student of a network."""
    student = RTN().make_student(network, parse_scheme("qdq/w8a8"))
    RTN().quantize(student, network, CalibrationSet(images), context())
    finalize(student)
    return student.eval()


def test_threads_are_those_asked_for_and_afterwards_those_before():
    before = torch.get_num_threads()
    with on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
