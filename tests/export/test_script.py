"""The script beside a file, run as its users do."""

import re
import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exportnets import SMALL, exported
from PIL import Image

from zsqbench.errors import ZSQBenchError
from zsqbench.export.script import check_place, write_script
from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.images import PixelCache, Sample, normalize, pixels

GEOMETRIES = {
    "resized and cut": {"resize": 10, "crop": 8, "interpolation": "bicubic"},
    "stretched": {"resize": (8, 8), "crop_mode": "squash", "interpolation": "bilinear"},
}


def photo(tmp_path, size=(23, 17)):
    generator = np.random.default_rng(3)
    coarse = Image.fromarray(generator.integers(0, 255, (4, 5, 3), np.uint8)).resize(size)
    coarse.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def preprocessed(of, image, given):
    """The tensor that evaluation makes of an image."""
    geometry = Geometry(
        of.input_size,
        given["resize"],
        given.get("crop"),
        given["interpolation"],
        "rgb",
        given.get("crop_mode", "center"),
    )
    sample = Sample("photo", 0, lambda: Image.open(image).convert("RGB"))
    return normalize(pixels([sample], geometry, PixelCache(0)), of.mean, of.std, of.value_range)


def printed(script, image):
    done = subprocess.run([sys.executable, script, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", GEOMETRIES)
def test_it_prints_the_classes_that_the_student_predicts_on_the_same_pixels(tmp_path, name):
    small = name == "stretched"  # a file of pixels, without names of classes
    file = exported("moving", "qdq/w4a8", **SMALL) if small else exported("bounded", "qdq/w8a8")
    model = ir.load(file.path)
    if not small:
        model.metadata_props["zsqbench.classes"] = '["ant", "bee", "cat", "dog"]'
    ir.save(model, tmp_path / "net.onnx")
    script, image = write_script(tmp_path / "net.onnx", GEOMETRIES[name]), photo(tmp_path)
    assert script == tmp_path / "net.py"
    with torch.no_grad():
        logits = file.integer.student(preprocessed(file.of, image, GEOMETRIES[name]))[0]
    head, *lines = printed(script, image).splitlines()
    assert head == f"output logits (1, {len(logits)})"
    found = [re.fullmatch(r" +(-?[\d.]+)  (\w+)", line).groups() for line in lines]
    order = logits.argsort(descending=True, stable=True)
    np.testing.assert_allclose([float(value) for value, _ in found], logits[order].numpy(), atol=1e-3)
    name_of = [str(index) for index in range(9)] if small else ["ant", "bee", "cat", "dog"]
    assert found[0][1] == name_of[int(order[0])]


def test_it_replaces_one_that_it_wrote_and_nothing_else(tmp_path):
    shutil.copy(exported("bounded", "qdq/w8a8").path, tmp_path / "net.onnx")
    script = write_script(tmp_path / "net.onnx", {})
    script.write_text(script.read_text() + "\n# edited")
    write_script(tmp_path / "net.onnx", {})
    assert "# edited" not in script.read_text()
    script.write_text("import torch  # my network")
    for write in (check_place, lambda file: write_script(file, {})):
        with pytest.raises(ZSQBenchError, match=r"the script beside net\.onnx would replace .*net\.py; give "):
            write(tmp_path / "net.onnx")
    assert script.read_text() == "import torch  # my network"
    (tmp_path / "other.py").mkdir()
    with pytest.raises(ZSQBenchError, match=r"would replace .*other\.py"):
        check_place(tmp_path / "other.onnx")


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"cannot write .*net\.py: No such file or directory; give another file"):
        write_script(tmp_path / "missing" / "net.onnx", {})
