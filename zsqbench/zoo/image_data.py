"""Labelled images in an evaluation part and a calibration part: the digits, CIFAR, and folders of classes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo import cifar, digits
from zsqbench.zoo.imagefiles import open_image
from zsqbench.zoo.images import LabelledFile, Sample, class_folders, list_classes, overlap

CIFAR_CLASSES: Mapping[str, int] = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class ImagePart:
    """The files of a part of the data by stable name, and its samples in the order of evaluation."""

    files: Mapping[str, Path]
    samples: Callable[[], list[Sample]]
    count: int
    """The number of samples. Batches that are not read yet count as the published batches."""


@dataclass(frozen=True)
class ImageData:
    """Both parts of a data set, the names of its classes, and its folder."""

    evaluation: ImagePart
    calibration: ImagePart
    classes: tuple[str, ...]
    folders: tuple[Path, ...]
    absent: str | None = None
    """Why there are no calibration images, if the task names a folder for them."""


def find_digits() -> ImageData:
    """The embedded digits: the parts test and train."""

    def part(name: Literal["train", "test"]) -> ImagePart:
        return ImagePart({digits.FILE.name: digits.FILE}, lambda: _digit_samples(name), digits.IMAGES[name])

    classes = tuple(str(digit) for digit in range(digits.CLASSES))
    # The file, not its folder: the networks are in the same folder, and methods may import from there.
    return ImageData(part("test"), part("train"), classes, (digits.FILE,))


def _digit_samples(part: Literal["train", "test"]) -> list[Sample]:
    images, labels = digits.load_digits(part)
    grey = images.squeeze(1).mul(255).round().byte().numpy()
    return _array_samples(digits.FILE, part, grey, labels.tolist())


def find_cifar(data: str, root: Path) -> ImageData:
    """Class folders if there is a folder `test`, or else the python batches, here or in the archive's folder."""
    classes = tuple(str(index) for index in range(CIFAR_CLASSES[data]))
    if (root / "test").is_dir():
        classes = tuple(folder.name for folder in class_folders(root / "test"))
        evaluation, calibration = (_list_cifar(root, part, classes) for part in ("test", "train"))
        shared = {file.path.resolve() for file in evaluation} & {file.path.resolve() for file in calibration}
        if shared:
            raise ZSQBenchError(
                f"{root}: train and test share {len(shared)} files, such as {min(shared)}; keep them apart"
            )
        if evaluation:
            return ImageData(of_files(evaluation, classes), of_files(calibration, classes), classes, (root,))
    for folder in (root, root / cifar.ARCHIVE_FOLDERS[data]):
        there = {
            part: [folder / name for name in names if (folder / name).is_file()]
            for part, names in cifar.BATCHES[data].items()
        }
        if there["test"]:
            return ImageData(_of_batches(there["test"]), _of_batches(there["train"]), classes, (root,))
    raise ZSQBenchError(
        f"{root} holds no {data}: expected {root}/test/CLASS/*.png and {root}/train/CLASS/*.png, or the python batches "
        f"({', '.join(itertools.chain(*cifar.BATCHES[data].values()))})"
    )


def _list_cifar(root: Path, part: str, classes: Sequence[str]) -> list[LabelledFile]:
    files = [dataclasses.replace(file, name=f"{part}/{file.name}") for file in list_classes(root / part)]
    _check_classes(files, classes, root / part)
    return files


def list_calibration(
    folder: Path, root: Path, classes: Sequence[str], evaluated: Iterable[LabelledFile]
) -> list[LabelledFile]:
    """The images of another folder. None of them may be an evaluation image. Empty: there is no such folder."""
    files = list_classes(folder)
    _check_classes(files, classes, folder)
    shared = {file.path for file in files} & {file.path for file in evaluated}
    if shared or overlap(folder, root):
        raise ZSQBenchError(f"calibration folder {folder} and evaluated folder {root} overlap; nothing may be in both")
    return files


def _check_classes(files: Iterable[LabelledFile], classes: Sequence[str], folder: Path) -> None:
    strange = sorted({file.class_name for file in files} - set(classes))
    if strange:
        raise ZSQBenchError(
            f"class {strange[0]!r} of {folder} is not among the {len(classes)} classes that are evaluated"
        )


def of_files(files: Sequence[LabelledFile], classes: Sequence[str]) -> ImagePart:
    """A part that consists of image files."""
    index = {name: position for position, name in enumerate(classes)}

    def samples() -> list[Sample]:
        return [
            Sample((str(file.path), *_stamp(file.path)), index[file.class_name], partial(open_image, file.path))
            for file in files
        ]

    return ImagePart({file.name: file.path for file in files}, samples, len(files))


def _of_batches(batches: Sequence[Path]) -> ImagePart:
    def samples() -> list[Sample]:
        return [s for path in batches for s in _array_samples(path, "", *cifar.read_batch(path))]

    return ImagePart({path.name: path for path in batches}, samples, cifar.IMAGES * len(batches))


def _array_samples(path: Path, part: str, images: Any, labels: Sequence[int]) -> list[Sample]:
    """Samples of a uint8 array [N, H, W] or [N, H, W, 3]."""
    from PIL.Image import fromarray

    stamp = _stamp(path)
    return [
        Sample((str(path), part, index, *stamp), label, partial(fromarray, array))
        for index, (array, label) in enumerate(zip(images, labels, strict=True))
    ]


def _stamp(path: Path) -> tuple[int, int]:
    """Values that change when a file is rewritten."""
    try:
        status = path.stat()
    except OSError as error:
        raise ZSQBenchError(f"image {path} cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size
