"""A request says what is to be quantized, for which target, in which time, and where the work is kept."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of, file_digest

Target = Literal["int8", "int4"]

SEARCHES = "searches"
"""The folder of the home that suites, rows and held-out images of requests are in."""

PLACEMENT = "qdq_float_logits"
"""The placement of candidates: what runtimes can run with integers, and outputs in float.

The range of outputs is what synthetic images tell least of. On EfficientNet-Lite0, `rtn` on 16 images of `dgh` agrees
with the float network on 85 % of 200 real images with quantized outputs, and on 98.5 % with float ones. A product of
matrices gives floats at no cost, as the last layer of most classifiers.
"""

PLACEMENTS: Mapping[str, Mapping[str, str]] = {PLACEMENT: {"base": "qdq", "logits": "float"}}
"""As a suite has it under `schemes`."""

SCHEMES: Mapping[Target, str] = {"int8": f"{PLACEMENT}/w8a8", "int4": f"{PLACEMENT}/w4a8"}

WIDTHS: Mapping[Target, str] = {
    "int8": "weights and activations of 8 bits",
    "int4": "weights of 4 bits and activations of 8",
}
"""The meaning of the targets, for people."""

INSTEAD = "give a .py file with a function build() that returns the network, and its weights by --weights"

NO_FILES = ("none", "built")
"""Weights that are no file: seeded random ones, and those that a user's file loads itself."""

FED = ("input_size", "mean", "std", "value_range", "channels")
"""A network that build() returns may describe its input by attributes of these names."""


@dataclass(frozen=True)
class Request:
    """A network and what is wanted of it."""

    model: str
    """As the command names it."""
    entry: Mapping[str, Any]
    """As a suite has it under `models`."""
    target: Target
    budget: float
    """Seconds."""
    home: Path
    images: Path | None = None
    """The user's images, to judge on."""
    threads: int = 1
    workers: int = 1
    device: str = "auto"

    @property
    def scheme(self) -> str:
        """The scheme that the target means."""
        return SCHEMES[self.target]

    @property
    def folder(self) -> Path:
        """Where suites, rows and held-out images of this request are; another one begins where this one has not."""
        named = [self.entry.get(key, "none") for key in ("file", "weights")]
        files = [file_digest(Path(name)) for name in named if name not in NO_FILES]
        asked = [self.model, dict(self.entry), files, self.target, self.budget, str(self.images), self.threads]
        return self.home / SEARCHES / digest_of(asked)[:16]


def check_images(folder: Path) -> None:
    """Raise ZSQBenchError where a folder is absent or holds no images."""
    from zsqbench.zoo.images import EXTENSIONS, list_images

    if not folder.is_dir():
        raise ZSQBenchError(f"there is no folder {folder}; --images is a folder of images")
    if not list_images(folder):
        raise ZSQBenchError(f"{folder} holds no images; expected files such as {', '.join(EXTENSIONS[:3])}")


def model_entry(
    model: str,
    weights: str | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The entry of a network in a suite: a name, or a .py file, which is built to read what it says of its input.

    Raises ZSQBenchError for files of another kind, for detectors, and where nobody says how a file's network is fed.
    """
    given = {"weights": weights, "input_size": input_size, "mean": mean, "std": std}
    said = {
        name: value if isinstance(value, str) else list(value) for name, value in given.items() if value is not None
    }
    path = Path(model)
    if "weights" in said and weights not in NO_FILES:
        if not Path(str(weights)).is_file():
            raise ZSQBenchError(
                f"there is no file {weights}; expected a file, none for random weights, or built for those that "
                "a .py file loads itself"
            )
        said["weights"] = str(Path(str(weights)).resolve())
    if weights == "built" and path.suffix != ".py":
        raise ZSQBenchError("--weights built is for a .py file that loads its weights itself; leave it out")
    if path.suffix == ".py":
        return _entry_of_file(path, said)
    if path.suffix in {".pt", ".pth", ".pt2", ".ts", ".onnx", ".safetensors", ".ckpt", ".tar"} or path.is_file():
        raise ZSQBenchError(_refusal(path))
    from zsqbench.zoo.detectors import is_detector
    from zsqbench.zoo.models import check_name

    if is_detector(model):
        raise ZSQBenchError(
            f"{model} is a detector, which is judged by its boxes: run a suite with the task coco_detection"
        )
    check_name(model)
    return {"base": model, **said}


def _entry_of_file(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise ZSQBenchError(f"there is no file {path}; expected a .py file with a function build(), or a name")
    if "weights" not in said:
        raise ZSQBenchError(
            f"{path} needs --weights FILE, --weights built where build() loads them itself, or --weights none for "
            "random ones"
        )
    from zsqbench.zoo.userfile import load_user_model

    weights = said["weights"]
    network = load_user_model(path.resolve(), "build", weights if weights in NO_FILES else Path(weights))
    for name in FED:
        if name not in said and (own := getattr(network, name, None)) is not None:
            said[name] = own if isinstance(own, str) else list(own)
    for name in ("input_size", "mean", "std"):
        if name not in said:
            option = f"--{name.replace('_', '-')}"
            raise ZSQBenchError(
                f"{path} does not say its {name}: give {option}, or the network that build() returns an attribute "
                f"{name!r}"
            )
    return {"file": str(path.resolve()), **said}


def _refusal(path: Path) -> str:
    """Why a file is no network that can be quantized here, and what to give instead."""
    if path.suffix == ".onnx":
        return f"{path} is ONNX, which holds no PyTorch network to generate images from and to learn with: {INSTEAD}"
    if not path.is_file():
        return f"there is no file {path}; {INSTEAD}, or a name such as torchvision/resnet18"
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if path.suffix == ".pt2" or any(
        name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names
    ):
        return f"{path} is an exported program, whose batch normalisations and layers are taken apart: {INSTEAD}"
    if path.suffix == ".ts" or any("/code/" in name for name in names):
        return f"{path} is TorchScript, whose layers cannot be taken out and quantized: {INSTEAD}"
    return f"{path} is no network; if it holds weights, {INSTEAD}"
