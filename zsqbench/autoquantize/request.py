"""A request: the network to quantize, the target, the time budget, and the folders for the work."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of, file_digest

Target = Literal["int8", "int4"]

SEARCHES = "searches"
"""The folder of the home with suites, rows and held-out images of requests."""

PLACEMENT = "qdq_float_logits"
"""The placement of candidates: tensors that runtimes can run with integers, and outputs in float.

Synthetic images give the range of outputs least accurately. On EfficientNet-Lite0, `rtn` on 16 images of `dgh` agrees
with the float network on 85 % of 200 real images with quantized outputs, and on 98.5 % with float outputs. A product
of matrices, such as the last layer of most classifiers, can return floats at no cost.
"""

PLACEMENTS: Mapping[str, Mapping[str, str]] = {PLACEMENT: {"base": "qdq", "logits": "float"}}
"""The form of an entry of `schemes` in a suite."""

SCHEMES: Mapping[Target, str] = {"int8": f"{PLACEMENT}/w8a8", "int4": f"{PLACEMENT}/w4a8"}

WIDTHS: Mapping[Target, str] = {
    "int8": "weights and activations of 8 bits",
    "int4": "weights of 4 bits and activations of 8",
}
"""The meaning of the targets, for people."""

INSTEAD = "give a .py file with a function build() that returns the network, and its weights by --weights"

NO_FILES = ("none", "built")
"""Values of --weights that are not files: seeded random weights, and weights that a user's file loads itself."""

FED = ("input_size", "mean", "std", "value_range", "channels")
"""A network from build() may describe its input by attributes with these names."""


@dataclass(frozen=True)
class Request:
    """A network and the wish of the user."""

    model: str
    """The network in the form of the command."""
    entry: Mapping[str, Any]
    """The form of an entry of `models` in a suite."""
    target: Target
    budget: float
    """The budget in seconds."""
    home: Path
    images: Path | None = None
    """The user's images for judging. None: there are none."""
    threads: int = 1
    workers: int = 1
    device: str = "auto"

    @property
    def scheme(self) -> str:
        """The scheme of the target."""
        return SCHEMES[self.target]

    @property
    def folder(self) -> Path:
        """The folder for suites, rows and held-out images of this request. Another request has another folder."""
        named = [self.entry.get(key, "none") for key in ("file", "weights")]
        files = [file_digest(Path(name)) for name in named if name not in NO_FILES]
        asked = [self.model, dict(self.entry), files, self.target, self.budget, str(self.images), self.threads]
        return self.home / SEARCHES / digest_of(asked)[:16]


def check_images(folder: Path) -> None:
    """Raise ZSQBenchError if a folder does not exist or has no images."""
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
    """The entry of a network in a suite: a name, or a .py file. The file is built, to read the facts of its input.

    Raises ZSQBenchError for files of another kind, for detectors, and if the input of a file's network is not known.
    """
    given = {"weights": weights, "input_size": input_size, "mean": mean, "std": std}
    said = {
        name: value if isinstance(value, str) else list(value) for name, value in given.items() if value is not None
    }
    path = Path(model)
    if "weights" in said and weights not in NO_FILES:
        if not Path(str(weights)).is_file():
            raise ZSQBenchError(
                f"there is no file {weights}; expected a file of weights, 'none' (random weights) or 'built' (a .py "
                "file of yours loads its weights itself)"
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
    """Why a file cannot be quantized here, and what to give instead."""
    if path.suffix == ".onnx":
        return f"{path} is ONNX, but images and learning need a PyTorch network: {INSTEAD}"
    if not path.is_file():
        return f"there is no file {path}; {INSTEAD}, or a name such as torchvision/resnet18"
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if path.suffix == ".pt2" or any(
        name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names
    ):
        return f"{path} is an exported program, in which batch normalisations and layers are already split: {INSTEAD}"
    if path.suffix == ".ts" or any("/code/" in name for name in names):
        return f"{path} is TorchScript, whose layers cannot be replaced by quantized layers: {INSTEAD}"
    return f"{path} is not a network; if it holds weights, {INSTEAD}"
