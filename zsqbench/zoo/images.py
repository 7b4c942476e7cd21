"""Image folders, and pixels for a network: decoded, resized, scaled, normalised, and kept in memory."""

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
    """An image file with its class. Its name is CLASS/FILE or CLASS/FOLDER/FILE on every machine."""

    name: str
    path: Path
    class_name: str


@dataclass(frozen=True)
class Sample:
    """An image that is decoded when it is needed, and its class index."""

    key: Hashable
    """The key of the decoded image in memory. Only equal pixels have equal keys."""
    label: int
    open: Callable[[], "Image"]


class PixelCache:
    """Decoded images up to a number of bytes. The least recently used image is removed first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.turned: set[Hashable] = set()
        """Keys of decoded images that EXIF wants turned, but that are not turned."""
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable, make: "Callable[[], torch.Tensor]") -> "torch.Tensor":
        """The tensor under this key, or else the result of `make`."""
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
    """The image files of root/CLASS, at any depth. Hidden files and folders and other types are skipped.

    The order is that of torchvision's ImageFolder: by class, folder and file name. A folder without images is an empty
    class. Links are resolved, so that a file has only one path. Raises ZSQBenchError for a link that leads back.
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
    """The image files of a folder, at any depth, in the order of `list_classes`. Their class is the topmost subfolder.

    A file in the folder itself has an empty class. Raises ZSQBenchError for a link that leads back.
    """
    found = sorted(_images_below(root.resolve()), key=_as_torchvision)
    return [LabelledFile(name, path, name.partition("/")[0] if "/" in name else "") for name, path in found]


def class_folders(root: Path) -> list[Path]:
    """The folders of a root, one for each class, sorted by name. Empty: there is no such root."""
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
    """Convert uint8 [N, C, H, W] to the network's normalised float32 space."""
    import torch

    low, high = value_range
    means, deviations = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
    return (images.float().div(255).mul(high - low).add(low) - means) / deviations


def draw(names: Sequence[T], count: int, seed: int) -> list[T]:
    """A seeded choice without repetition. It is the same on every machine and with every version of every library."""

    def place(name: T) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    return sorted(names, key=place)[:count]


def overlap(one: Path, other: Path) -> bool:
    """True if one folder is equal to the other folder, or inside it."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _images_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[str, Path]]:
    """The images of a folder and its subfolders: the path of each from here, and its real path."""
    if folder in above:
        raise ZSQBenchError(f"a link in {folder} leads back to this folder; remove the link")
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        real = Path(entry).resolve() if entry.is_symlink() else Path(entry)
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", path) for name, path in _images_below(real, above | {folder}))
        elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
            yield entry.name, real


def _as_torchvision(found: tuple[str, Path]) -> tuple[str, str]:
    """Sort by folder, and in a folder by file. Files of a folder come before files of its subfolders."""
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
