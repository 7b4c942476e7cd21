"""Image folders, and pixels as a network wants them: decoded, brought to size, scaled, normalised; and kept."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.imagefiles import is_turned

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

T = TypeVar("T")

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class LabelledFile:
    """An image file with its class: its name is CLASS/FILE or CLASS/FOLDER/FILE, whatever the machine."""

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
    """The image files of root/CLASS, at any depth; hidden files and folders and other types are passed over.

    The order is that of torchvision's ImageFolder: by class, folder and file name. A folder without images is an empty
    class. Links are resolved, so that a file has one path only. Raises ZSQBenchError for one that leads back.
    """
    root = root.resolve()
    return [
        LabelledFile(f"{folder.name}/{name}", path, folder.name)
        for folder in class_folders(root)
        for name, path in sorted(
            _images_below(folder.resolve() if folder.is_symlink() else folder), key=_as_torchvision
        )
    ]


def list_images(root: Path) -> list[LabelledFile]:
    """The image files of a folder, at any depth, in the order of `list_classes`; their class is the folder at its top.

    A file in the folder itself has an empty one. Raises ZSQBenchError for a link that leads back.
    """
    found = sorted(_images_below(root.resolve()), key=_as_torchvision)
    return [LabelledFile(name, path, name.partition("/")[0] if "/" in name else "") for name, path in found]


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


def normalize(
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


def _images_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[str, Path]]:
    """The images of a folder and of those in it: the path of each from here, and where it really is."""
    if folder in above:
        raise ZSQBenchError(f"a link leads back to {folder}, in which it lies; remove it")
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        real = Path(entry).resolve() if entry.is_symlink() else Path(entry)
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", path) for name, path in _images_below(real, above | {folder}))
        elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
            yield entry.name, real


def _as_torchvision(found: tuple[str, Path]) -> tuple[str, str]:
    """Sort by folder, and in a folder by file: what is in a folder comes before what is in those below it."""
    folder, _, file = found[0].rpartition("/")
    return folder, file


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
