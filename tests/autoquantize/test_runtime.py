import warnings

import pytest
import torch
from torch import nn

from zsqbench.autoquantize.runtime import measure


class Held(nn.Module):
    """What gives its network's outputs in a dict, half as large."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"out": 0.5 * self.network(x)}


def test_a_file_is_compared_with_its_student_and_timed_beside_the_float_network(tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval(), torch.randn(6, 3, 8, 8)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(network, (images[:1],), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    found = measure(tmp_path / "net.onnx", network, network, images)
    assert (found.equal, found.images) == (100, 6)
    assert found.error < 1e-3
    assert 0 < found.quantized.p50 <= found.quantized.p95
    assert found.unquantized.p50 > 0
    assert found.float_size_mb > 0.002
    halved = measure(tmp_path / "net.onnx", Held(network), network, images)
    assert halved.error == pytest.approx(100, abs=1e-3)
