"""Networks with one image as input: found by name or file, loaded, and fed as the suite or their definition says.

They are for tasks of images, such as the classification task.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.data import Pretrained
from zsqbench.methods.modelspec import ModelSpec
from zsqbench.zoo import models
from zsqbench.zoo.geometry import Geometry, Side, mean_colour, side
from zsqbench.zoo.images import PixelCache, Sample, normalize, pixels
from zsqbench.zoo.models import DEFINITIONS, Feeding, Network

if TYPE_CHECKING:
    import torch


def find_model(model: ModelSpec, usual: Feeding | None = None) -> Mapping[str, Path]:
    """The model file and the weights file, where they exist; see `load_network` for `usual`.

    Raises ZSQBenchError for an unknown name, and for a file whose input format nobody gives.
    """
    weights = model.weights_from
    files: dict[str, Path] = {}
    if model.file is not None:
        _feeding(model, None, usual)  # raises if mean and std are needed and not given
        files["file"] = model.file
    else:
        models.check_name(_base(model))
        if weights is None and model.base in DEFINITIONS:
            weights = models.shipped_weights(_base(model))
    return files | ({"weights": weights} if isinstance(weights, Path) else {})


def load_network(
    model: ModelSpec, note: Callable[[str], None], usual: Feeding | None = None, classes: int | None = None
) -> Network:
    """Build a network and load its weights. `note` is told the findings about the weights file.

    `usual` and `classes` are mean and deviation, and number of classes, of the data. They are used for networks with a
    user's weights where the suite does not give them. Raises ZSQBenchError where weights do not fit, or nobody gives
    the input format.
    """
    weights = model.weights_to_load(note)
    if model.file is not None:
        from zsqbench.zoo.userfile import load_user_model

        module = load_user_model(model.file, model.build, weights or "none")  # the spec demands weights
        return Network(module, _feeding(model, None, usual))
    base = _base(model)
    network = models.load_named(base, weights, model.classes or (classes if _comes_bare(base) else None))
    return Network(network.module, _feeding(model, network.feeding, usual))


def pretrained_of(model: ModelSpec, network: Network, classes: int | None) -> Pretrained:
    """A network in the form that methods take."""
    feeding = network.feeding
    return Pretrained(
        module=network.module,
        input_size=feeding.input_size,
        mean=feeding.mean,
        std=feeding.std,
        value_range=feeding.value_range,
        classes=classes,
        preprocessing=_preprocessing(feeding),
        architecture=model.base if "/" in _base(model) else None,
    )


def image_tensors(
    samples: Sequence[Sample], pretrained: Pretrained, cache: PixelCache
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Images in the network's normalised space, float32 [N, C, H, W], and labels, int64 [N]."""
    import torch

    images = pixels(samples, geometry_of(pretrained), cache)
    labels = torch.tensor([sample.label for sample in samples])
    return normalize(images, pretrained.mean, pretrained.std, pretrained.value_range), labels


def geometry_of(pretrained: Pretrained) -> Geometry:
    """Resizing and cropping of an image to the size of a network."""
    geometry = Geometry(input_size=pretrained.input_size, **pretrained.preprocessing)
    if geometry.crop_mode != "border":
        return geometry
    colour = mean_colour(pretrained.mean, pretrained.value_range, geometry.channels)
    return dataclasses.replace(geometry, fill=colour)


def _feeding(model: ModelSpec, own: Feeding | None, usual: Feeding | None) -> Feeding:
    """The suite's values, else those of the network's own definition, else those of the data."""
    if own is None:
        mean, std = model.mean or (usual and usual.mean), model.std or (usual and usual.std)
        if not mean or not std or model.input_size is None:
            raise ZSQBenchError(f"model {model.name!r} needs 'mean' and 'std', as it was trained with them")
        own = Feeding(model.input_size, mean, std)
    elif usual is not None and _comes_bare(_base(model)):
        own = dataclasses.replace(own, mean=usual.mean, std=usual.std)
    resize, crop = _resize_and_crop(model, own)
    feeding = dataclasses.replace(own, resize=resize, crop=crop, **_said(model))
    channels = feeding.input_size[0]
    if channels not in (1, 3):
        raise ZSQBenchError(f"model {model.name!r} takes {channels} channels; images have 1 (grey) or 3 (colour)")
    if not len(feeding.mean) == len(feeding.std) == channels or min(feeding.std) <= 0:
        raise ZSQBenchError(
            f"model {model.name!r} takes {channels} channels, so 'mean' and 'std' need {channels} values each, "
            f"and std positive ones; found {list(feeding.mean)} and {list(feeding.std)}"
        )
    return feeding


def _preprocessing(feeding: Feeding) -> dict[str, Any]:
    """The preprocessing without a field in `Pretrained`. The usual crop mode is in no network's identity."""
    fields = {name: getattr(feeding, name) for name in ("resize", "crop", "interpolation", "channels")}
    return fields if feeding.crop_mode == "center" else {**fields, "crop_mode": feeding.crop_mode}


def _base(model: ModelSpec) -> str:
    """The named network of which a model without a file is a variant. The spec demands a base or a file."""
    return model.base or ""


def _comes_bare(base: str) -> bool:
    """True for a definition without its own weights."""
    return base in DEFINITIONS and DEFINITIONS[base].weights is None


def _said(model: ModelSpec) -> dict[str, Any]:
    fields = ("input_size", "mean", "std", "channels", "value_range", "crop_mode")
    return {name: getattr(model, name) for name in fields if getattr(model, name) is not None}


def _resize_and_crop(model: ModelSpec, own: Feeding) -> tuple[Side | None, Side | None]:
    """The suite's values.

    Where the suite resizes or changes the input and gives no crop, the crop has the size of the network's input.
    """

    def choose(said: Side | Literal["none"] | None, default: Side | None) -> Side | None:
        if said is None or said == "none":
            return default if said is None else None
        return said if isinstance(said, int) else side(*said)

    resized = model.resize not in (None, "none") or (model.input_size is not None and own.crop is not None)
    input_size = model.input_size or own.input_size
    return choose(model.resize, own.resize), choose(model.crop, side(*input_size[1:]) if resized else own.crop)
