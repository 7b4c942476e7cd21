"""`zsqbench quantize` on embedded networks, from nothing to a file and a page."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zsqbench.autoquantize import search
from zsqbench.autoquantize.candidates import Level

FOR_ALL = ("--budget", "10m", "--workers", "0")


@pytest.fixture
def quantize(bench, monkeypatch):
    """The command with tiny sets."""
    monkeypatch.setattr(search, "LEVELS", (Level(images=8, iterations=2, learning=2),))

    def quantize(model, *arguments, output="model.onnx"):
        where = ("-o", bench.folder / output, "--home", bench.home)
        return bench.zsqbench("quantize", model, *where, *FOR_ALL, *arguments)

    return quantize


CLASSIFIER = """
from torch import nn
def build():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )
    network.input_size, network.mean, network.std = (1, 8, 8), (0.5,), (0.25,)
    return network
"""


def test_a_network_becomes_a_file_and_a_page(quantize, bench, monkeypatch):
    onnxruntime, _ = pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(search, "CANDIDATES", {"int8": search.CANDIDATES["int8"][:5:2]})
    network = bench.write("net.py", CLASSIFIER)
    said = quantize(network, "--weights", "none")
    assert said.code == 0, said.err
    assert said.out == (bench.folder / "model.txt").read_text()
    assert "<h2>What to fear</h2>" in (bench.folder / "model.html").read_text()
    names = ["squant without images", "rtn on noise", "rtn on dgh"]
    table = said.out.partition("WHY THIS ONE")[2].partition("LEFT OUT")[0]
    assert all(name in table for name in names)
    assert "LEFT OUT\n- No candidate was left out.\n" in said.out
    assert "3 of 3 layers run with integers in ONNX Runtime." in said.out
    session = onnxruntime.InferenceSession(bench.folder / "model.onnx")
    (logits,) = session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})
    assert logits.shape == (3, 10)
    again = quantize(network, "--weights", "none")
    line = (
        f"error: {bench.folder / 'model.onnx'} is there already, and is left as it is; remove it, or name another file"
    )
    assert (again.code, again.err) == (2, f"{line}\n")


@pytest.mark.slow("it exports a network")
def test_images_of_the_users_decide_and_weights_of_4_bits_are_stored_so(quantize, bench, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(search, "CANDIDATES", {"int4": search.CANDIDATES["int4"][:1]})
    noise = np.random.default_rng(0)
    for digit in range(10):
        (bench.folder / "mine" / str(digit)).mkdir(parents=True)
        Image.fromarray(noise.integers(0, 255, (8, 8), np.uint8)).save(bench.folder / "mine" / str(digit) / "a.png")
    said = quantize(
        bench.write("net.py", CLASSIFIER), "--weights", "none", "--images", bench.folder / "mine", "--target", "int4"
    )
    assert said.code == 0, said.err
    assert f"% of 10 images of {bench.folder / 'mine'}." in said.out
    assert "- Of your labels it meets " in said.out
    assert "3 layers have weights of 4 bits, which runtimes turn into floats: these layers run in float." in said.out


TRANSFORMER = """
import torch
from torch import nn
class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.qkv, self.norm, self.head = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 10)
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 17, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 17, 16)
        return self.head(x[:, 0])
def build():
    network = Transformer()
    network.input_size, network.mean, network.std = (1, 16, 16), (0.5,), (0.25,)
    return network
"""


@pytest.mark.slow("it exports a transformer, and makes images by two methods")
@pytest.mark.timeout(300)  # the export of a transformer is slow, and most so on a busy machine
def test_a_transformer_is_judged_and_calibrated_on_images_that_need_no_batch_normalisation(
    quantize, bench, monkeypatch
):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    kept = [each for each in search.CANDIDATES["int8"] if each.quantizer in {"dfq", "rtn"}]
    monkeypatch.setattr(search, "CANDIDATES", {"int8": kept})
    said = quantize(bench.write("net.py", TRANSFORMER), "--weights", "none")
    assert said.code == 0, said.err
    assert "rtn on image_prior: " in said.err
    assert "rtn on psaq_vit: " in said.err
    assert "- Candidates were judged on 16 synthetic images; none was calibrated on any of them." in said.out
    left_out = said.out.partition("LEFT OUT\n")[2].partition("\n\n")[0].splitlines()
    assert [line.partition(":")[0] for line in left_out[:-1]] == ["- dfq without images"]


NET = """
from torch import nn
def build():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network.input_size, network.mean, network.std = (3, 8, 8), (0.5,) * 3, (0.25,) * 3
    return network
"""


@pytest.mark.slow("it exports a network")
def test_a_network_that_is_no_classifier_is_judged_by_its_outputs(quantize, bench, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(search, "CANDIDATES", {"int8": search.CANDIDATES["int8"][:2]})
    file = bench.write("net.py", NET)
    said = quantize(file, "--weights", "none")
    assert said.code == 0, said.err
    assert "- The highest fidelity is chosen." in said.out
    assert "% of their size, on 8 synthetic images." in said.out
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
        (
            ["resnet20", "--budget", "long"],
            "budget 'long' is not a duration; expected 90s, 20m, 1h30m, or a number of seconds",
        ),
        (["resnet2"], "unknown model 'resnet2'; did you mean 'resnet20'?"),
        (["scenedetector"], "scenedetector is a detector, which is judged by its boxes"),
        (["resnet20", "--images", "nowhere"], "there is no folder nowhere; --images is a folder of images"),
        (["model.onnx"], "model.onnx is ONNX, but images and learning need a PyTorch network"),
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
    assert "'a,b' is not a list of numbers such as R,G,B" in said.err


@pytest.mark.slow("test_search interrupts a search each time")
def test_an_interrupted_search_ends_as_the_signal_asks(quantize, monkeypatch):
    stopped = SimpleNamespace(signal=15)
    monkeypatch.setattr("zsqbench.autoquantize.search.Search.run", lambda _: stopped)
    said = quantize("resnet20")
    assert said.code == 143
    assert said.err.endswith("interrupted; the same command goes on from what is done\n")
