"""The named networks as plain data: their names, builders and preprocessing. Listing and checking need no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.zoo.geometry import CropMode, Side

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Feeding:
    """The preprocessing of a network: resize, crop the centre (see `Geometry`), scale to `value_range`, normalise."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Side | None = None
    crop: Side | None = None
    interpolation: str = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"
    value_range: tuple[float, float] = (0.0, 1.0)
    crop_mode: CropMode = "center"


def _untold(line: str) -> None:
    """A note function that ignores notes on a file."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, the choice of its weights, and a function for one-line notes on the file."""

    file: Path
    taken: Literal["model", "ema"] | None = None
    """The model's own weights or their moving average. None: the model's, or the average if the file has no others."""
    note: Callable[[str], None] = _untold


RANDOM: Literal["none"] = "none"
"""No weights are given: they are seeded random numbers."""
BUILT: Literal["built"] = "built"
"""The function that builds the network also loads its weights."""

Weights = Path | Checkpoint | Literal["none", "built"]
"""The origin of the weights of a network: a file, seeded random numbers, or the function that builds it."""


@dataclass(frozen=True)
class Network:
    """A built network in eval mode with frozen weights, and its preprocessing."""

    module: "nn.Module"
    feeding: Feeding


@dataclass(frozen=True)
class Definition:
    """A network that is defined here: its family, the arguments of its constructor, and its weights, if any."""

    family: Literal["resnet", "mobilenet", "vit", "brecq"]
    arguments: Mapping[str, Any]
    feeding: Feeding
    weights: Path | None = None
    """The file of shipped weights. None: the user provides weights."""
    classes: int = field(default=10)
    published: str = ""
    """The file that the user provides, and its origin, if it must be a certain file."""


DIGITS = Feeding((1, 16, 16), (0.304,), (0.318,), resize=16)
"""The embedded digits at twice their size. Mean and deviation are those of the train images at that size."""
CIFAR10 = Feeding((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""The values of GDFQ's, IntraQ's and HAST's loaders. ZeroQ's and DSG's divide by others, which a suite can set."""
CIFAR100 = Feeding((3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2557, 0.2761))
IMAGENET = Feeding((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256, crop=224)

_FOLDER = Path(__file__).parent
_BRECQ_RELEASE = "https://github.com/yhhhli/BRECQ/releases/tag/v1.0"
_BRECQ_FILES = {
    "resnet18": "resnet18_imagenet.pth.tar",
    "resnet50": "resnet50_imagenet.pth.tar",
    "mobilenetv2": "mobilenetv2.pth.tar",
}

DEFINITIONS: Mapping[str, Definition] = {
    "resnet20": Definition(
        "resnet", {"depth": 20, "width": 4, "in_channels": 1}, DIGITS, _FOLDER / "resnet20.safetensors"
    ),
    "mobilenetv2": Definition(
        "mobilenet",
        {"stages": ((6, 1, 1), (8, 2, 2), (12, 2, 2)), "stem": 6, "head": 48, "in_channels": 1},
        DIGITS,
        _FOLDER / "mobilenetv2.safetensors",
    ),
    "vit": Definition(
        "vit", {"side": 16, "patch": 4, "width": 32, "depth": 4, "heads": 4}, DIGITS, _FOLDER / "vit.safetensors"
    ),
    **{f"cifar_resnet{depth}": Definition("resnet", {"depth": depth}, CIFAR10) for depth in (20, 32, 44, 56)},
    **{
        f"brecq/{name}": Definition(
            "brecq", {"name": name}, IMAGENET, classes=1000, published=f"{file} of {_BRECQ_RELEASE}"
        )
        for name, file in _BRECQ_FILES.items()
    },
}
"""The networks that are defined here, by name."""

EMBEDDED_DETECTOR, TORCHVISION = "scenedetector", "torchvision/"
"""The name of the embedded detector, and the prefix of the names of torchvision's detectors."""

SCENE_DETECTOR = _FOLDER / "scenedetector.safetensors"
"""Weights of the embedded detector."""

LIBRARIES: Mapping[str, str] = {
    "torchvision": "resnet18",
    "timm": "resnet18",
    "pytorchcv": "resnet18",
    "efficientnet_lite": "lite0",
}
"""Libraries whose networks are named LIBRARY/NAME, each with an example. Only the library knows its other names."""


def check_name(name: str) -> None:
    """Raise ZSQBenchError for a name that cannot be a network. Names of libraries are checked at loading."""
    library, slash, rest = name.partition("/")
    if name in DEFINITIONS or (slash and library in LIBRARIES and rest):
        return
    known = [*sorted(DEFINITIONS), *(f"{library}/NAME" for library in LIBRARIES)]
    if slash and library in LIBRARIES:
        example = f"{library}/{LIBRARIES[library]}"
        raise ZSQBenchError(f"model {name!r} names a library without a network; expected for example {example}")
    close = did_you_mean(f"{library}/", [f"{known}/" for known in LIBRARIES]) if slash else ""
    suggestion = close or did_you_mean(name, DEFINITIONS) or ";"
    raise ZSQBenchError(f"unknown model {name!r}{suggestion} known: {', '.join(known)}, or a file of your own")


def shipped_weights(name: str) -> Path:
    """The weights file of a definition. Raises ZSQBenchError if the user must provide the weights."""
    definition = DEFINITIONS[name]
    if definition.weights is None:
        file = definition.published or "a file"
        raise ZSQBenchError(f"model {name!r} comes without weights; give 'weights': {file}, or none for random ones")
    return definition.weights


def load_named(name: str, weights: Weights | None = None, classes: int | None = None) -> Network:
    """Build a named network with its own weights (None), weights of a file, or ("none") seeded random weights.

    `classes` is for definitions with a free number of classes. Raises ZSQBenchError for an unknown name, weights that
    do not fit, a library that is not installed, or weights that cannot be downloaded.
    """
    check_name(name)
    if name in DEFINITIONS:
        return _load_definition(name, DEFINITIONS[name], weights, classes)
    from zsqbench.zoo import libraries

    return libraries.load(name, weights, classes)


def _load_definition(name: str, definition: Definition, weights: Weights | None, classes: int | None) -> Network:
    from zsqbench.zoo import brecq
    from zsqbench.zoo.mobilenet import MobileNetV2
    from zsqbench.zoo.resnet import CifarResNet
    from zsqbench.zoo.vit import VisionTransformer
    from zsqbench.zoo.weights import build_network

    weights = weights or shipped_weights(name)
    families: dict[str, Callable[..., nn.Module]]
    families = {"resnet": CifarResNet, "mobilenet": MobileNetV2, "vit": VisionTransformer, "brecq": brecq.build}
    build = families[definition.family]
    arguments = {**definition.arguments, "classes": classes or definition.classes}
    return Network(build_network(lambda: build(**arguments), weights), definition.feeding)
