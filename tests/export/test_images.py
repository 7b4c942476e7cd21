"""A calibration set in a folder for other tools: exact tensors, PNGs, and what calibrators read."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.export import images as exported
from zsqbench.export.images import export_images
from zsqbench.methods import CalibrationSet, Pretrained
from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.imagefiles import open_image
from zsqbench.zoo.images import PixelCache, Sample, normalize, pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(size=(3, 5, 7), mean=MEAN, std=STD, value_range=(0.0, 1.0), **preprocessing):
    return Pretrained(nn.Identity(), size, mean, std, value_range, preprocessing=preprocessing)


def valid_images(of, count=4):
    """Uniform noise between black and white."""
    low, high = of.valid_range()
    return low + (high - low) * torch.rand(count, *of.input_size)


def fed(of, folder):
    """The PNGs of a folder as a network is fed them, by zsqbench's own preprocessing without resize and crop."""
    geometry = Geometry(of.input_size, None, None, "bilinear", of.preprocessing.get("channels", "rgb"))
    samples = [
        Sample(path.name, 0, lambda path=path: open_image(path)) for path in sorted((folder / "images").iterdir())
    ]
    return normalize(pixels(samples, geometry, PixelCache(0)), of.mean, of.std, of.value_range)


def complaint(*arguments):
    with pytest.raises(ZSQBenchError) as error:
        export_images(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


NETWORKS = {
    "rgb": network(),
    "bgr": network(channels="bgr"),
    "255": network(mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), value_range=(0.0, 255.0), channels="bgr"),
    "signed": network(mean=(0.0,) * 3, std=(1.0,) * 3, value_range=(-1.0, 1.0)),
    "grey": network((1, 8, 8), (0.304,), (0.318,)),
}


@pytest.mark.parametrize("of", NETWORKS.values(), ids=NETWORKS)
def test_pngs_that_a_network_is_fed_are_the_images_up_to_half_a_step(tmp_path, of):
    images = valid_images(of)
    made = export_images(CalibrationSet(images), of, tmp_path / "made", "a cell")
    difference = (fed(of, tmp_path / "made") - images).abs().max().item()
    low, high = of.value_range
    half = (high - low) / 510 / min(of.std)
    assert made.rounding.largest == pytest.approx(difference, rel=1e-4)
    assert half / 2 < difference < half * 1.001
    assert (made.images, made.rounding.cut) == (4, 0.0)


def test_the_tensors_are_exact_and_have_their_labels(tmp_path):
    of = NETWORKS["rgb"]
    images, labels = valid_images(of), torch.arange(4)
    export_images(CalibrationSet(images, labels), of, tmp_path / "made", "a cell")
    found = load_file(tmp_path / "made" / "calibration.safetensors")
    assert torch.equal(found["images"], images)
    assert torch.equal(found["labels"], labels)
    assert "`labels` says what each was made for" in (tmp_path / "made" / "README.md").read_text()


def test_what_lies_beyond_black_and_white_is_cut_and_told(tmp_path):
    of = NETWORKS["signed"]
    images = torch.zeros(1, 3, 5, 7)
    images[0, 0, 0, :2] = torch.tensor([1.5, -1.25])
    made = export_images(CalibrationSet(images), of, tmp_path / "made", "a cell")
    assert made.rounding.cut == pytest.approx(2 / 105)
    assert made.rounding.largest_cut == pytest.approx(0.5)
    assert made.rounding.largest == pytest.approx(1 / 255, rel=1e-3)
    told = "1.9 % of the values lie beyond black and white and were cut, by up to 0.5"
    assert told in (tmp_path / "made" / "README.md").read_text()


def test_the_readme_says_how_the_network_is_fed(tmp_path):
    export_images(CalibrationSet(valid_images(NETWORKS["255"])), NETWORKS["255"], tmp_path / "made", "cell x of y")
    text = (tmp_path / "made" / "README.md").read_text()
    assert text.startswith("# Calibration images of cell x of y\n\n4 images of 3 x 5 x 7 ")
    assert "(pixel / 255 * 255 - mean) / std of each pixel" in text
    assert "mean [103.5, 116.3, 123.7] and std [57.4, 57.1, 58.4]. The order of the channels is BGR." in text


def test_images_of_two_channels_have_no_pngs(tmp_path):
    of = network((2, 5, 7), (0.0, 0.0), (1.0, 1.0))
    made = export_images(CalibrationSet(valid_images(of)), of, tmp_path / "made", "a cell")
    assert made.rounding is None
    assert not (tmp_path / "made" / "images").exists()
    assert "There are no PNGs, because these have 1 or 3 channels." in (tmp_path / "made" / "README.md").read_text()


def test_a_folder_that_is_empty_is_filled(tmp_path):
    (tmp_path / "made").mkdir()
    export_images(CalibrationSet(valid_images(NETWORKS["rgb"])), NETWORKS["rgb"], tmp_path / "made", "a cell")
    assert {path.name for path in tmp_path.iterdir()} == {"made"}
    names = {"README.md", "calibration.py", "calibration.safetensors", "images"}
    assert {path.name for path in (tmp_path / "made").iterdir()} == names
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "made").iterdir())


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "mine").write_text("mine")
    said = complaint(CalibrationSet(valid_images(NETWORKS["rgb"])), NETWORKS["rgb"], tmp_path, "a cell")
    assert said == f"{tmp_path} is not empty, and is left as it is; name a folder that is new or empty"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine", "mine")]


def test_a_file_in_place_of_the_folder_stays_as_it_is(tmp_path):
    (tmp_path / "mine").write_text("mine")
    said = complaint(CalibrationSet(valid_images(NETWORKS["rgb"])), NETWORKS["rgb"], tmp_path / "mine", "a cell")
    assert said.startswith(f"{tmp_path / 'mine'} is a file, and is left as it is")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "made", tmp_path.__class__("/proc/made")):
        said = complaint(CalibrationSet(valid_images(NETWORKS["rgb"])), NETWORKS["rgb"], folder, "a cell")
        assert said.startswith(f"cannot write into {folder}: ")


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "_readme", full)
    said = complaint(CalibrationSet(valid_images(NETWORKS["rgb"])), NETWORKS["rgb"], tmp_path / "made", "a cell")
    assert said == f"cannot write into {tmp_path / 'made'}: No space left on device"
    assert list(tmp_path.iterdir()) == []


# --- the forms that calibrators read --------------------------------------------------------------------------------


@pytest.fixture
def calibration(tmp_path):
    """The module of a folder of five images, and the images."""
    of = NETWORKS["rgb"]
    images = valid_images(of, 5)
    export_images(CalibrationSet(images), of, tmp_path / "made", "a cell")
    spec = importlib.util.spec_from_file_location("calibration", tmp_path / "made" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, images.numpy()


@pytest.mark.filterwarnings("ignore")  # of torch.onnx, of onnx and of onnxruntime's own tool
def test_onnxruntime_quantizes_a_network_on_the_images(calibration, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import quantize_static

    module, images = calibration
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 5, 4)).eval()
    path, quantized = str(tmp_path / "net.onnx"), str(tmp_path / "int8.onnx")
    shown, names = (torch.zeros(2, 3, 5, 7),), {"input_names": ["images"], "dynamic_axes": {"images": {0: "N"}}}
    torch.onnx.export(net, shown, path, dynamo=False, **names)  # the older exporter takes a tenth of the time
    reader = module.onnxruntime_reader(path, size=2)
    assert [len(next(iter(batch.values()))) for batch in iter(reader.get_next, None)] == [2, 2, 1]
    reader.rewind()
    quantize_static(path, quantized, reader, reduce_range=True)  # without VNNI, 8 bits saturate
    outputs = []
    for file in (path, quantized):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs += session.run(None, {session.get_inputs()[0].name: images})
    error = abs(outputs[1] - outputs[0]).max()
    assert 0 < error < 0.05 * abs(outputs[0]).max()


def test_openvino_is_given_each_image_as_an_input(calibration, monkeypatch):
    module, images = calibration
    monkeypatch.setitem(sys.modules, "nncf", SimpleNamespace(Dataset=list))
    found = module.openvino_dataset()
    assert [batch.shape for batch in found] == [(1, 3, 5, 7)] * 5
    assert all((batch[0] == image).all() for batch, image in zip(found, images, strict=True))


def test_tensorrt_is_given_the_addresses_of_whole_batches_and_a_cache(calibration, monkeypatch, tmp_path):
    module, images = calibration
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(IInt8EntropyCalibrator2=object))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    made = module.tensorrt_calibrator(tmp_path / "cache", size=2)
    assert (made.get_batch_size(), made.read_calibration_cache()) == (2, None)
    for start in (0, 2):  # the fifth image is no batch
        (address,) = made.get_batch(["input"])
        assert address == made.batch.data_ptr()
        assert (made.batch.numpy() == images[start : start + 2]).all()
    assert made.get_batch(["input"]) is None
    made.write_calibration_cache(b"ranges")
    assert made.read_calibration_cache() == b"ranges"


@pytest.mark.slow("it exports a network, and another tool quantizes it")
def test_the_example_of_the_documentation_runs(tmp_path, python, request):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    of = network((1, 16, 16), (0.304,), (0.318,))
    export_images(CalibrationSet(valid_images(of, 8)), of, tmp_path / "images", "a cell")
    text = (request.config.rootpath / "docs" / "deploy.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    done = python(next(each for each in example if "quantize_static" in each), cwd=tmp_path)
    found = re.findall(r"^(?:network\.onnx |network_int8\.onnx )?([\d.]+) % (?:right|equal)", done.stdout, re.MULTILINE)
    assert len(found) == 3, done.stderr
    assert (found[0], float(found[2]) > 90) == ("98.67", True)
