"""Image folders, and pixels as a network wants them: decoded, brought to size, scaled, normalised; and kept."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.imagefiles import is_turned

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

T = TypeVar("T")

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class LabelledFile:
    """An image file with the folder that it lies in: its name is CLASS/FILE, whatever the machine."""

    name: str
    path: Path
    class_name: str


@dataclass(frozen=True)
class Sample:
    """An image that can be decoded when it is needed, and its class index."""

    key: Hashable
    """Equal for equal pixels only: what the decoded image is remembered by."""
    label: int
    open: Callable[[], "Image"]


class PixelCache:
    """Decoded images up to a number of bytes; the one that was used longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.turned: set[Hashable] = set()
        """Keys of the images, as far as they were decoded, that EXIF turns and nobody else does."""
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable, make: "Callable[[], torch.Tensor]") -> "torch.Tensor":
        """The tensor that is kept under this key, or what `make` returns."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tensor = make()
        self._kept[key] = tensor
        self.bytes += tensor.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return tensor


def list_classes(root: Path) -> list[LabelledFile]:
    """The image files of root/CLASS/*, sorted by class and file name; hidden files and other types are passed over.

    A folder without images is an empty class. Links are resolved, so that a file has one path only.
    """
    root = root.resolve()
    return [
        LabelledFile(f"{folder.name}/{entry.name}", _real(entry, folder), folder.name)
        for folder in class_folders(root)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    ]


def class_folders(root: Path) -> list[Path]:
    """The folders of a root, one a class, sorted by name; none where there is no such root."""
    if not root.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    return [root / name for name in names]


def pixels(samples: Sequence[Sample], geometry: Geometry, cache: PixelCache) -> "torch.Tensor":
    """Decode, resize and crop: uint8 [N, C, H, W]. Raises ZSQBenchError for an image that cannot be read or used."""
    import torch

    return torch.stack([cache.get((s.key, geometry), partial(_decode, s, geometry, cache.turned)) for s in samples])


def normalise(
    images: "torch.Tensor", mean: Sequence[float], std: Sequence[float], value_range: tuple[float, float]
) -> "torch.Tensor":
    """From uint8 [N, C, H, W] to the network's normalised float32 space."""
    import torch

    low, high = value_range
    means, deviations = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
    return (images.float().div(255).mul(high - low).add(low) - means) / deviations


def draw(names: Sequence[T], count: int, seed: int) -> list[T]:
    """A seeded choice without repetition, the same on every machine and with every version of every library."""

    def place(name: T) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    return sorted(names, key=place)[:count]


def overlap(one: Path, other: Path) -> bool:
    """True if one folder is the other one, or in it."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _real(entry: "os.DirEntry[str]", folder: Path) -> Path:
    return Path(entry).resolve() if entry.is_symlink() or folder.is_symlink() else Path(entry)


def _decode(sample: Sample, geometry: Geometry, turned: set[Hashable]) -> "torch.Tensor":
    import numpy as np
    import torch

    channels, height, width = geometry.input_size
    image = sample.open()
    if is_turned(image):
        turned.add(sample.key)
    array = np.array(geometry.apply(image.convert("L" if channels == 1 else "RGB"))).reshape(height, width, channels)
    if geometry.channels == "bgr":
        array = array[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
