"""The script beside an exported file: it runs the file on an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsqbench.errors import ZSQBenchError

_FIRST = '"""Run this network on an image: '

_SCRIPT = '''\
"""Run this network on an image: python {script} IMAGE. It needs onnxruntime, numpy and pillow."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # else x86 without VNNI may saturate
session = onnxruntime.InferenceSession(str(Path(__file__).with_name("{file}")), options)
metadata = session.get_modelmeta().custom_metadata_map
known = {{name.partition(".")[2]: json.loads(text) for name, text in metadata.items()}}
fed, taken = known["preprocessing"], session.get_inputs()[0]
channels, height, width = fed["input_size"]
image = Image.open(sys.argv[1]).convert("RGB" if channels == 3 else "L")
{geometry}
pixels = np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)[None]
if fed.get("channels") == "bgr":
    pixels = pixels[:, ::-1]
low, high = fed["value_range"]
mean, std = (np.array(fed[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
if taken.type != "tensor(uint8)":
    pixels = ((pixels.astype(np.float32) / 255 * (high - low) + low - mean) / std).astype(np.float32)
outputs = session.run(None, {{taken.name: np.ascontiguousarray(pixels)}})
for values, (name, layer) in zip(outputs, known["outputs"].items(), strict=True):
    print(name, layer, values.shape)
    if values.ndim == 2:
        for index in values[0].argsort()[::-1][:5]:
            print(f"  {{values[0, index]:9.4f}}  {{known['classes'][index] if 'classes' in known else index}}")
'''

_RESIZE = """\
shorter = min(image.size)
size = tuple({resize} if side == shorter else int({resize} * side / shorter) for side in image.size)
image = image.resize(size, Image.Resampling.{interpolation})"""

_STRETCH = """\
image = image.resize(({width}, {height}), Image.Resampling.{interpolation})"""

_CROP = """\
left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
image = image.crop((left, top, left + {width}, top + {height}))"""

_FIT = "image = image if image.size == (width, height) else image.resize((width, height))"


def check_place(file: Path) -> None:
    """Raise ZSQBenchError if the script beside a file would replace a file of the user, or a folder."""
    path = file.with_suffix(".py")
    try:
        kept = path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_FIRST)
    except OSError:
        kept = True
    if kept:
        raise ZSQBenchError(
            f"the script beside {file.name} would replace {path}; give {file.name} another name or folder"
        )


def write_script(file: Path, preprocessing: Mapping[str, Any]) -> Path:
    """Write a script beside an exported file that runs it on an image, preprocessed as in evaluation. Returns its path.

    The script does not support borders (`crop_mode: border`) and the preprocessing of detectors: it stretches the
    image. Raises ZSQBenchError as `check_place` does, and if the script cannot be written.
    """
    check_place(file)
    path = file.with_suffix(".py")
    lines = "\n".join([*_geometry(preprocessing), _FIT])
    try:
        path.write_text(_SCRIPT.format(file=file.name, script=path.name, geometry=lines), encoding="utf-8")
    except OSError as error:
        raise ZSQBenchError(f"cannot write {path}: {error.strerror or error}; give another file") from error
    return path


def _geometry(given: Mapping[str, Any]) -> list[str]:
    """The lines that resize and crop an image to the network's size."""
    resize, crop, mode = given.get("resize"), given.get("crop"), given.get("crop_mode", "center")
    interpolation = str(given.get("interpolation", "bilinear")).upper()
    if mode == "border":
        return []
    lines = []
    if isinstance(resize, int) and mode == "center":
        lines.append(_RESIZE.format(resize=resize, interpolation=interpolation))
    elif resize is not None and mode == "squash":
        height, width = (resize, resize) if isinstance(resize, int) else resize
        lines.append(_STRETCH.format(width=width, height=height, interpolation=interpolation))
    if crop is not None and (lines or resize is None):
        height, width = (crop, crop) if isinstance(crop, int) else crop
        lines.append(_CROP.format(width=width, height=height))
    return lines
