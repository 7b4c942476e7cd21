"""Data that methods exchange: a trained network, and images for calibration."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zsqbench.zoo.detection import Detection

BOX = 6
"""Number of values of a box in a calibration set."""


@dataclass(frozen=True)
class Pretrained:
    """A trained network in eval mode with frozen weights, and its input format."""

    module: "nn.Module"
    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    """Values of black and white before mean and std are applied."""
    outputs: tuple[str, ...] = ("logits",)
    """Names of the raw outputs."""
    classes: int | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Other preprocessing of the task (resize, crop, channel order), as plain data; part of the identity."""
    architecture: str | None = None
    """Name of the published definition, such as torchvision/resnet18; None for a user's own network."""

    output_layers: tuple[str, ...] = ()
    """Paths of the modules that give the raw outputs; empty where the network returns the raw outputs."""
    decoding: Any = None
    """Data for the task that loaded the network, for its inputs and outputs; part of no identity."""
    detection: "Detection | None" = None
    """Training loss and boxes of a detector, where the task hands them out, for methods with `needs_training_loss`.
    The identity contains only its presence."""

    def valid_range(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Smallest and largest value of a valid pixel in normalised space, each [1, C, 1, 1]."""
        import torch

        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        low, high = self.value_range
        return (low - mean) / std, (high - mean) / std

    def digest(self) -> str:
        """Hash of weights, buffers and preprocessing. It changes when anything changes that a method can read."""
        sha = hashlib.sha256()
        feeding = [
            self.input_size,
            self.mean,
            self.std,
            self.value_range,
            self.outputs,
            self.classes,
            self.architecture,
            *self.output_layers,
        ]
        sha.update(json.dumps([*feeding, dict(self.preprocessing)], sort_keys=True).encode())
        for name, value in self.module.state_dict().items():
            _add(sha, name, value)
        return sha.hexdigest()


def _add(sha: "hashlib._Hash", name: str, value: Any) -> None:
    """Add a tensor to a hash, or the extra state of a module, which is any data."""
    import torch

    if isinstance(value, torch.Tensor):
        array = value.detach().contiguous().cpu()
        sha.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        sha.update(array.flatten().view(torch.uint8).numpy().data)
        return
    try:
        sha.update(f"{name} {json.dumps(value, default=_digest)}".encode())
    except (TypeError, ValueError) as error:  # from json: invalid keys, and data that contains itself
        raise ZSQBenchError(f"the extra state {name} of the network cannot be hashed: {error}") from error


def _digest(value: Any) -> str:
    """The hash of a tensor within extra state."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"it holds {type(value).__name__}, expected numbers, text, tensors, and lists and mappings")
    sha = hashlib.sha256()
    _add(sha, "", value)
    return sha.hexdigest()


@dataclass(frozen=True)
class CalibrationSet:
    """Images that a quantizer calibrates on, in the network's normalised space."""

    images: "torch.Tensor"
    """float32 [N, C, H, W]."""
    labels: "torch.Tensor | None" = None
    """int64 [N], or float32 [N, classes] for soft labels."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The origin of the images, as plain data, for readers."""
    boxes: "torch.Tensor | None" = None
    """float32 [M, 6], targets of detectors: number of the image, label, centre (x, y), width and height. The last four
    are in parts of the image's width and height. An image may have any number of boxes."""

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write a safetensors file: `images`, `labels`, `boxes`, and the provenance as metadata."""
        from safetensors.torch import save_file

        tensors = {"images": self.images.detach().cpu().float().contiguous()}
        if self.labels is not None:
            tensors["labels"] = self.labels.detach().cpu().contiguous()
        if self.boxes is not None:
            tensors["boxes"] = self.boxes.detach().cpu().float().contiguous()
        save_file(tensors, path, metadata={"provenance": json.dumps(dict(self.provenance))})

    @classmethod
    def load(cls, path: Path) -> "CalibrationSet":
        """Read a file of `save`, or any safetensors file with a tensor `images`. Raises ZSQBenchError for others."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if "images" not in names:
                    raise ZSQBenchError(f"{path} holds no tensor 'images'; it holds {', '.join(names) or 'nothing'}")
                images = file.get_tensor("images")
                labels = file.get_tensor("labels") if "labels" in names else None
                boxes = file.get_tensor("boxes") if "boxes" in names else None
                provenance = json.loads((file.metadata() or {}).get("provenance", "{}"))
        except SafetensorError as error:
            raise ZSQBenchError(f"{path} is not a safetensors file that can be read: {error}") from error
        return cls(images, labels, provenance, boxes)
