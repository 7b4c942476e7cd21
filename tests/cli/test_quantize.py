"""`zsqbench quantize` on an embedded network, with an exporter that writes the float network."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import zsqbench.export
from zsqbench.autoquantize import search
from zsqbench.autoquantize.candidates import Level

FOR_ALL = ("--budget", "10m", "--workers", "0")


@pytest.fixture
def quantize(bench, monkeypatch):
    """The command with tiny sets."""
    monkeypatch.setattr(search, "LEVELS", (Level(images=8, iterations=2, learning=2),))
    monkeypatch.setattr(zsqbench.export, "export_student", write_float, raising=False)

    def quantize(model, *arguments, output="model.onnx"):
        where = ("-o", bench.folder / output, "--home", bench.home)
        return bench.zsqbench("quantize", model, *where, *FOR_ALL, *arguments)

    return quantize


def write_float(student, pretrained, path, *, metadata):
    with warnings.catch_warnings(action="ignore"):
        example = torch.zeros(1, *pretrained.input_size)
        torch.onnx.export(pretrained.module, (example,), str(path), dynamo=True, verbose=False)
    said = [f"{name}: {value}" for name, value in metadata.items()]
    return SimpleNamespace(size_mb=0.5, notes=[f"{type(student).__name__} was handed over", *said])


def test_a_network_becomes_a_file_and_a_page(quantize, bench, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(search, "CANDIDATES", search.CANDIDATES[:5:2])
    said = quantize("resnet20")
    assert said.code == 0, said.err
    assert (bench.folder / "model.onnx").is_file()
    assert said.out == (bench.folder / "model.txt").read_text()
    assert "<h2>What to fear</h2>" in (bench.folder / "model.html").read_text()
    assert "LEFT OUT\n- none\n" in said.out
    names = ["squant without images", "rtn on noise (control)", "rtn on dgh"]
    assert all(name in said.out for name in names)
    assert "- model: resnet20\n- scheme: hw_strict/w8a8\n- pipeline: " in said.out
    assert "Size: 0.50 MB, float 0." in said.out
    again = quantize("resnet20")
    line = (
        f"error: {bench.folder / 'model.onnx'} is there already, and is left as it is; remove it, or name another file"
    )
    assert (again.code, again.err) == (2, f"{line}\n")


NET = """
from torch import nn
def build():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network.input_size, network.mean, network.std = (3, 8, 8), (0.5,) * 3, (0.25,) * 3
    return network
"""


def test_a_network_that_is_no_classifier_is_judged_by_its_outputs(quantize, bench, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(search, "CANDIDATES", search.CANDIDATES[:2])
    file = bench.write("net.py", NET)
    said = quantize(file, "--weights", "none")
    assert said.code == 0, said.err
    assert "It has the highest fidelity of 2 candidates" in said.out
    assert "- The network has random weights: nothing here says anything of a trained one." in said.out


def test_a_blocker_ends_it_with_the_line_of_the_doctor(quantize, bench):
    source = NET.replace("nn.Conv2d(4, 2, 1)", "Branch()")
    source = source.replace(
        "def build",
        "class Branch(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\ndef build",
    )
    said = quantize(bench.write("net.py", source), "--weights", "none")
    assert said.code == 1
    assert said.out.startswith("blocker: ")
    assert not (bench.folder / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resnet20", "--budget", "long"], "a budget of 'long' is no time; expected such as 90s, 20m or 1h"),
        (["resnet2"], "unknown model 'resnet2'; did you mean 'resnet20'?"),
        (["scenedetector"], "scenedetector is a detector, which is judged by its boxes"),
        (["resnet20", "--images", "nowhere"], "there is no folder nowhere; --images is a folder of images"),
        (["model.onnx"], "model.onnx is ONNX, which holds no PyTorch network"),
    ],
)
def test_what_cannot_be_meant_is_one_line(quantize, arguments, line):
    said = quantize(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {line}")
    assert said.err.count("\n") == 1


def test_numbers_with_commas_are_read(quantize):
    said = quantize("resnet20", "--mean", "a,b")
    assert said.code == 2
    assert "'a,b' is no list of numbers such as R,G,B" in said.err


def test_an_interrupted_search_ends_as_the_signal_asks(quantize, monkeypatch):
    stopped = SimpleNamespace(signal=15)
    monkeypatch.setattr("zsqbench.autoquantize.search.Search.run", lambda _: stopped)
    said = quantize("resnet20")
    assert said.code == 143
    assert said.err.endswith("interrupted; the same command goes on from what is done\n")
