"""A calibration set for other tools: PNGs, the exact tensors, and the forms of other calibrators."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench import templates
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import CalibrationSet, Pretrained

if TYPE_CHECKING:
    import torch

IMAGES = "calibration.safetensors"
SCRIPT = "calibration.py"
PICTURES = "images"
README = "README.md"

COLOURS = (1, 3)
"""Numbers of channels of a PNG: grey, and colour."""


@dataclass(frozen=True)
class Rounding:
    """The distance of pixels of 8 bits from their original images."""

    largest: float
    """The largest difference in normalised space, over the values that 8 bits can hold."""
    cut: float
    """The share of values beyond black and white, 0 to 1. They became black and white."""
    largest_cut: float
    """The largest difference in normalised space of these values. 0: there are none."""

    def __str__(self) -> str:
        said = f"rounding to 8 bits moves no value by more than {self.largest:.2g} in normalised space"
        if not self.cut:
            return said
        return (
            f"{said}; {100 * self.cut:.2g} % of the values lie beyond black and white and were cut, by up to "
            f"{self.largest_cut:.2g}"
        )


@dataclass(frozen=True)
class ExportedImages:
    """A folder of images that was written."""

    folder: Path
    images: int
    rounding: Rounding | None
    """None: there are no PNGs, because they do not have this number of channels."""


def check_target(folder: Path) -> None:
    """Raise ZSQBenchError if the place has a folder that is not empty, or a file."""
    try:
        if folder.exists() and not folder.is_dir():
            raise ZSQBenchError(f"{folder} is a file, and is left as it is; expected a folder that is new or empty")
        if folder.is_dir() and any(folder.iterdir()):
            raise ZSQBenchError(f"{folder} is not empty, and is left as it is; name a folder that is new or empty")
    except OSError as error:
        raise ZSQBenchError(f"cannot write into {folder}: {error.strerror}") from error


def export_images(images: CalibrationSet, network: Pretrained, folder: Path, title: str) -> ExportedImages:
    """Write a calibration set of a network into a folder. The folder is complete or absent.

    `calibration.safetensors` holds the exact images, `images/` holds PNGs of 8 bits. `calibration.py` has the forms for
    the calibrators of other tools. README.md says how a PNG becomes the network's input. `title` names the origin of
    the images. Raises ZSQBenchError if the folder is not empty or cannot be written to.
    """
    check_target(folder)
    folder = folder.absolute()
    made: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        rounding = _fill(made, images, network, title)
        made.chmod(0o777 & ~_umask())  # only its owner may read a temporary folder
        made.rename(folder)  # replaces an empty folder
    except OSError as error:
        raise ZSQBenchError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return ExportedImages(folder, len(images), rounding)


def to_pixels(images: "torch.Tensor", network: Pretrained) -> "torch.Tensor":
    """Pixels of 8 bits, uint8 [N, C, H, W], of normalised images. Values beyond black and white are clipped.

    Except for rounding, this is the inverse of `zsqbench.zoo.images.normalize`. Channels stay in the network's order.
    """
    import torch

    low, high = network.value_range
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).double() for values in (network.mean, network.std))
    scaled = (images.double() * std + mean - low) / (high - low) * 255
    return scaled.round().clamp(0, 255).byte()


def _fill(folder: Path, images: CalibrationSet, network: Pretrained, title: str) -> Rounding | None:
    images.save(folder / IMAGES)
    (folder / IMAGES).chmod(0o666 & ~_umask())  # safetensors lets only its owner read it
    shutil.copyfile(Path(templates.__file__).parent / "calibration" / SCRIPT, folder / SCRIPT)
    rounding = _save_pictures(images, network, folder) if network.input_size[0] in COLOURS else None
    (folder / README).write_text(_readme(images, network, title, rounding), encoding="utf-8")
    return rounding


def _save_pictures(images: CalibrationSet, network: Pretrained, folder: Path) -> Rounding:
    """Write the PNGs, and compare the network inputs made from them with the images."""
    from PIL.Image import fromarray

    (folder / PICTURES).mkdir()
    pixels = to_pixels(images.images, network)
    shown = pixels.flip(1) if _order(network) == "bgr" else pixels
    for number, picture in enumerate(shown):
        array = picture.permute(1, 2, 0).contiguous().numpy()
        fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(folder / PICTURES / f"{number:05}.png")
    return _rounding(images.images, pixels, network)


def _rounding(images: "torch.Tensor", pixels: "torch.Tensor", network: Pretrained) -> Rounding:
    from zsqbench.zoo.images import normalize

    difference = (normalize(pixels, network.mean, network.std, network.value_range) - images).abs()
    low, high = network.valid_range()
    beyond = (images < low) | (images > high)
    return Rounding(
        largest=float(difference[~beyond].max()) if (~beyond).any() else 0.0,
        cut=float(beyond.double().mean()),
        largest_cut=float(difference[beyond].max()) if beyond.any() else 0.0,
    )


def _readme(images: CalibrationSet, network: Pretrained, title: str, rounding: Rounding | None) -> str:
    shape = " x ".join(map(str, network.input_size))
    order = {1: "The one channel is grey.", 3: f"The order of the channels is {_order(network).upper()}."}
    feeding = (
        f"The network takes float32 [N, {', '.join(map(str, network.input_size))}], in normalised space: "
        f"({_scaled(*network.value_range)} - mean) / std of each pixel of 8 bits, with mean {_said(network.mean)} and "
        f"std {_said(network.std)}. {order.get(network.input_size[0], '')}".rstrip()
    )
    pictures = (
        ["There are no PNGs, because these have 1 or 3 channels."]
        if rounding is None
        else [f"- `{PICTURES}/` holds them as PNGs of 8 bits, to be fed without resize and crop: {rounding}."]
    )
    labels = " `labels` says what each was made for." if images.labels is not None else ""
    lines = [
        f"# Calibration images of {title}",
        "",
        f"{len(images)} images of {shape} (channels x height x width).",
        "",
        f"- `{IMAGES}` holds them exactly, in a tensor `images`.{labels}",
        *pictures,
        f"- `{SCRIPT}` hands them to the calibrators of onnxruntime, OpenVINO (NNCF) and TensorRT.",
        "",
        feeding,
        "",
        "By onnxruntime's own tool, with `network.onnx` in floating point:",
        "",
        "```python",
        "from onnxruntime.quantization import quantize_static",
        "",
        "import calibration",
        "",
        'reader = calibration.onnxruntime_reader("network.onnx")',
        'quantize_static("network.onnx", "network_int8.onnx", reader, per_channel=True, reduce_range=True)',
        "```",
        "",
        "`reduce_range` is for x86 CPUs without VNNI, on which sums of products of 8-bit codes saturate.",
    ]
    return "\n".join([*lines, ""])


def _order(network: Pretrained) -> str:
    return str(network.preprocessing.get("channels", "rgb"))


def _scaled(low: float, high: float) -> str:
    """The formula that maps a pixel of 8 bits to the value range."""
    width = "" if high - low == 1 else f" * {high - low:g}"
    return f"pixel / 255{width}" + ("" if low == 0 else f" {'-' if low < 0 else '+'} {abs(low):g}")


def _said(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _umask() -> int:
    import os

    mask = os.umask(0o022)
    os.umask(mask)
    return mask
