"""Image classification: the embedded digits, CIFAR, and image folders such as ImageNet's; top-1 accuracy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

import zsqbench
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.methods import image_networks
from zsqbench.methods.image_networks import image_tensors
from zsqbench.zoo import digits, models
from zsqbench.zoo.image_data import CIFAR_CLASSES, ImageData, find_cifar, find_digits, list_calibration, of_files
from zsqbench.zoo.imagefiles import NOT_TURNED, eight_bit
from zsqbench.zoo.images import PixelCache, Sample, class_folders, draw, list_classes
from zsqbench.zoo.models import Feeding, Network

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

TOP = 5
"""A network with more classes than this also has top-5 accuracy."""

FED_AS: Mapping[str, Feeding] = {"digits": models.DIGITS, "cifar10": models.CIFAR10, "cifar100": models.CIFAR100}
"""Mean and deviation for networks with a user's weights, where the suite does not give them."""

CLASSES: Mapping[str, int] = {"digits": digits.CLASSES, **CIFAR_CLASSES}

# A worker measures many networks on the same images, and decoding 1,000 JPEGs takes longer than running a small network
# on them. A kept image depends on the file and the preprocessing alone, so no result depends on the cache.
_DECODED = PixelCache(limit=512 * 2**20)


class Classification(zsqbench.Task):
    """Top-1 accuracy of a classifier, in percent. Images that are evaluated are never handed out for calibration.

    `digits` is embedded. `cifar10` and `cifar100` are class folders (test/CLASS/*, train/CLASS/*) or the python batches
    of the original archives. `imagefolder` is any folder of class folders. The index of a class is its position among
    the folders, sorted by name. Calibration images come from the train part. For an image folder they come from another
    folder (`calibration`), or from a part of the folder that is then not evaluated (`holdout`).
    """

    name: ClassVar[str] = "classification"
    version: ClassVar[int] = 2
    metric: ClassVar[str] = "top1"
    # The files and the split that these options lead to are in the identity by content.
    execution_options: ClassVar[frozenset[str]] = frozenset({"root", "calibration", "holdout", "split_seed"})
    memory_options: ClassVar[tuple[str, ...]] = ("batch_size",)

    data: Literal["digits", "cifar10", "cifar100", "imagefolder"] = Field(description="kind of data that is classified")
    root: Path | None = Field(None, description="folder of the data under the data root; unset: the name of the data")
    calibration: Path | None = Field(
        None, description="imagefolder: another folder under the data root, whose images are for calibration"
    )
    holdout: int = Field(
        0, ge=0, description="imagefolder: number of images that are for calibration and are not evaluated"
    )
    split_seed: int = Field(0, description="seed of the choice of held-out images")
    batch_size: int = Field(100, gt=0, description="images evaluated at a time")

    @model_validator(mode="after")
    def _options_fit_the_data(self) -> "Classification":
        folder = self.data == "imagefolder"
        if folder and self.root is None:
            raise ValueError("data: imagefolder needs 'root', its folder under the data root")
        if not folder and (self.calibration is not None or self.holdout):
            raise ValueError(f"'calibration' and 'holdout' are for imagefolder; {self.data} has a train part")
        if self.data == "digits" and self.root is not None:
            raise ValueError("data: digits is embedded and has no 'root'")
        if self.calibration is not None and self.holdout:
            raise ValueError("give 'calibration' (another folder) or 'holdout' (a part of this one), not both")
        return self

    def find_data(self, data_root: Path | None) -> zsqbench.DataFiles:
        """The files of both parts. Raises ZSQBenchError for a folder that is absent, empty or calibrates on itself."""
        found = self._find(data_root)
        split = {"classes": list(found.classes), "holdout": self.holdout, "split_seed": self.split_seed}
        return zsqbench.DataFiles(
            evaluation=found.evaluation.files,
            calibration=found.calibration.files,
            split={name: value for name, value in split.items() if self.holdout or name == "classes"},
            folders=found.folders,
            classes=found.classes,
            absent=found.absent,
            samples=found.evaluation.count,
        )

    def find_model(self, model: zsqbench.ModelSpec) -> Mapping[str, Path]:
        """The model file and the weights file, where they exist. Raises ZSQBenchError for an unknown name."""
        return image_networks.find_model(model, FED_AS.get(self.data))

    def load(self, model: zsqbench.ModelSpec, ctx: zsqbench.StepContext) -> zsqbench.Pretrained:
        """Build the network, load its weights and run it on empty images. Raises ZSQBenchError if that fails."""
        usual, classes = FED_AS.get(self.data), CLASSES.get(self.data)
        network = image_networks.load_network(model, ctx.note, usual, classes)
        return image_networks.pretrained_of(model, network, _count_outputs(network, model))

    def evaluate(
        self, module: "nn.Module", pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.Evaluation:
        """Count the samples whose largest output is at their class. Outputs that are not finite are wrong."""
        import torch

        found = self._find(ctx.data_root)
        if len(found.classes) != pretrained.classes:
            raise ZSQBenchError(
                f"{self._title()} has {len(found.classes)} classes, the network {pretrained.classes} outputs: "
                "a class's index is its folder's position, so both must be the same"
            )
        samples = found.evaluation.samples()
        hits, predictions, truth, difficulties = [], [], [], []
        for number, batch in enumerate(_batched(samples, self.batch_size), start=1):
            images, labels = image_tensors(batch, pretrained, _DECODED)
            with torch.no_grad():
                logits = self._logits(module, images.to(ctx.device), pretrained, number, len(samples)).float().cpu()
            hits.append(_hits(logits, labels))
            predictions.append(_predictions(logits))
            truth.append(labels)
            difficulties.append(_difficulties(logits, labels))
            ctx.progress(sum(len(hit) for hit in hits), len(samples))
        turned = sum(sample.key in _DECODED.turned for sample in samples)
        if turned:
            ctx.note(NOT_TURNED.format(turned, len(samples)))
        first, five = torch.cat(hits).unbind(dim=1)
        metrics = {"top1": _percent(first), "correct": int(first.sum()), "samples": len(samples)}
        if len(found.classes) > TOP:
            metrics["top5"] = _percent(five)
        true, guessed = torch.cat(truth).tolist(), torch.cat(predictions).tolist()
        hard = torch.cat(difficulties).tolist()
        return zsqbench.Evaluation(metrics, first.tolist(), labels=true, predictions=guessed, difficulties=hard)

    def preprocessor(self, pretrained: zsqbench.Pretrained) -> "Callable[[Image], torch.Tensor]":
        """Resize, crop and normalise one image, as evaluation does."""

        def preprocess(image: "Image") -> "torch.Tensor":
            return image_tensors([Sample(id(image), -1, lambda: eight_bit(image))], pretrained, PixelCache(0))[0]

        return preprocess

    def viewer(self, data_root: Path | None) -> "Callable[[int], Image]":
        """The images as stored in the data, before they are resized and cropped."""
        samples = self._find(data_root).evaluation.samples()
        return lambda place: samples[place].open()

    def calibration_images(
        self, count: int, seed: int, pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.CalibrationSet:
        """A seeded choice, without repetition, from the part that is not evaluated; with labels.

        Raises ZSQBenchError where there is no such part.
        """
        found = self._find(ctx.data_root)
        samples = found.calibration.samples()
        if found.absent is not None:
            raise ZSQBenchError(found.absent)
        if not samples:
            raise ZSQBenchError(f"{self._title()} has no images to calibrate on: {self._how_to_calibrate()}")
        chosen = draw(range(len(samples)), count, seed)
        images, labels = image_tensors([samples[index] for index in chosen], pretrained, _DECODED)
        provenance = {"source": self._title(), "seed": seed, "images": len(chosen), "available": len(samples)}
        return zsqbench.CalibrationSet(images, labels, provenance)

    def _logits(
        self, module: "nn.Module", images: "torch.Tensor", pretrained: zsqbench.Pretrained, number: int, samples: int
    ) -> "torch.Tensor":
        """The logits of a batch, [N, classes].

        Raises ZSQBenchError where the network gives something else, or fails on an image that is alone in its batch.
        """
        import torch

        try:
            logits: torch.Tensor = module(images)
        except Exception as error:
            if len(images) > 1 or isinstance(error, ZSQBenchError | torch.OutOfMemoryError | MemoryError):
                raise
            outcome = f"fails on it ({one_line(error)})"
            raise ZSQBenchError(self._about_batch(number, 1, outcome, samples)) from error
        expected = [len(images), pretrained.classes]
        if list(logits.shape) != expected:
            outcome = f"gives {list(logits.shape)} for it, expected {expected}"
            raise ZSQBenchError(self._about_batch(number, len(images), outcome, samples))
        return logits

    def _about_batch(self, number: int, images: int, outcome: str, samples: int) -> str:
        """The error text for a batch that a network does not take, with a remedy where its image is alone."""
        if images > 1:
            return f"batch {number} of {self._title()} has {images} images, and the network {outcome}"
        sizes = range(self.batch_size + 1, self.batch_size + samples)
        other = next((f", or set the task's batch_size to {size}" for size in sizes if samples % size != 1), "")
        return (
            f"batch {number} of {self._title()} has 1 image, and the network {outcome}: a squeeze() in it may also "
            f"remove the batch dimension; name the dimensions to squeeze{other}"
        )

    def _find(self, data_root: Path | None) -> "ImageData":
        if self.data == "digits":
            return find_digits()
        if data_root is None:
            raise ZSQBenchError(f"{self._title()} needs a data root: give --data-root or set ZSQBENCH_DATA_ROOT")
        root = data_root / (self.root or self.data)
        if not root.is_dir():
            raise ZSQBenchError(
                f"there is no folder {root} for {self._title()}; is --data-root (or ZSQBENCH_DATA_ROOT) right?"
            )
        if self.data == "imagefolder":
            return self._find_folder(root, None if self.calibration is None else data_root / self.calibration)
        return find_cifar(self.data, root)

    def _find_folder(self, root: Path, calibration: Path | None) -> "ImageData":
        classes = tuple(folder.name for folder in class_folders(root))
        files = list_classes(root)
        if not files:
            raise ZSQBenchError(f"{root} holds no images: expected {root}/CLASS/*.jpg, one folder for each class")
        if calibration is not None:
            other = list_calibration(calibration, root, classes, files)
            absent = f"the calibration folder {calibration} holds no images: expected {calibration}/CLASS/*.jpg"
            parts = (of_files(files, classes), of_files(other, classes))
            return ImageData(*parts, classes, (root, calibration), None if other else absent)
        if self.holdout >= len(files):
            raise ZSQBenchError(
                f"holdout: {self.holdout} leaves nothing to evaluate of the {len(files)} images of {root}"
            )
        held_out = set(draw([file.name for file in files], self.holdout, self.split_seed))
        kept = [file for file in files if file.name not in held_out]
        drawn = [file for file in files if file.name in held_out]
        return ImageData(of_files(kept, classes), of_files(drawn, classes), classes, (root,))

    def _title(self) -> str:
        return self.data if self.root is None else f"{self.data} {self.root}"

    def _how_to_calibrate(self) -> str:
        if self.data == "imagefolder":
            return "set the task's 'calibration' (another folder) or 'holdout' (a number of images of this one)"
        return "its train part is absent"


def _batched(samples: Sequence[Sample], size: int) -> Iterable[Sequence[Sample]]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


def _hits(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Hits of the first guess, and of the first five: bool [N, 2]."""
    import torch

    finite = logits.isfinite().all(dim=1)
    first = logits.argmax(dim=1) == labels
    five = (logits.topk(min(TOP, logits.shape[1])).indices == labels[:, None]).any(dim=1)
    return torch.stack([first & finite, five & finite], dim=1)


def _predictions(logits: "torch.Tensor") -> "torch.Tensor":
    """The first guess, int64 [N]; -1 where an output is not finite."""
    return logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)


def _difficulties(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """1 - p of the label, float32 [N]; 1 where an output is not finite."""
    from zsqbench.synthesis import difficulty

    return difficulty(logits, labels).where(logits.isfinite().all(dim=1), 1.0)


def _percent(hits: "torch.Tensor") -> float:
    return 100 * int(hits.sum()) / len(hits)


def _count_outputs(network: Network, model: zsqbench.ModelSpec) -> int:
    """Run two empty images. Raises ZSQBenchError where the network does not return one row of logits for each."""
    import torch

    shape = (2, *network.feeding.input_size)
    try:
        with torch.no_grad():
            logits = network.module(torch.zeros(shape))
    except Exception as error:  # a user's network may fail in any way, and so may a size that it is not made for
        detail = " ".join(str(error).split())
        raise ZSQBenchError(f"model {model.name!r} fails on an input of {list(shape)}: {detail}") from error
    found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(found, list) or len(found) != 2 or found[0] != 2:  # noqa: PLR2004  # N and classes
        raise ZSQBenchError(f"model {model.name!r} returns {found} for {shape[0]} images, expected logits [N, classes]")
    if model.classes not in (None, found[1]):
        raise ZSQBenchError(f"model {model.name!r} has {found[1]} outputs, but the suite says classes: {model.classes}")
    return int(found[1])


@zsqbench.hookimpl
def register_tasks() -> list[type[zsqbench.Task]]:
    """Provide `classification`."""
    return [Classification]
