"""Tasks without labels: how far a quantized network's decisions or outputs are from the float network's."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.methods import image_networks
from zsqbench.zoo.imagefiles import eight_bit
from zsqbench.zoo.images import LabelledFile, PixelCache, Sample, draw, list_images

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

# A worker measures many networks on the same images, as in classification.
_DECODED = PixelCache(limit=512 * 2**20)

UNLABELLED = -1


@dataclass(frozen=True)
class _Part:
    """Batches of normalised images [N, C, H, W] with labels; -1 stands for no label."""

    name: str
    count: int
    batches: "Callable[[], Iterator[tuple[torch.Tensor, list[int]]]]"


class _Judge(zsqbench.Task, ABC):
    """Held-out images without labels: images of a file, such as synthetic ones, and images of a folder.

    Where both are given, the headline figure is that of the folder. Each part also has its own figures, whose names
    begin with `synthetic/` and `images/`. Where neither is given, the task evaluates on seeded noise in the valid range
    of pixels. It hands out no images for calibration.
    """

    execution_options: ClassVar[frozenset[str]] = frozenset({"folder"})
    memory_options: ClassVar[tuple[str, ...]] = ("batch_size",)

    file: zsqbench.InputFile | None = Field(
        None, description="safetensors with `images` [N, C, H, W] in the network's normalised space"
    )
    folder: Path | None = Field(
        None,
        description="folder of image files, under the data root or absolute; class folders are labels where "
        "there is one for each class of the network",
    )
    most: int | None = Field(
        None, gt=0, description="largest number of images of the folder, the same ones each time; unset: all"
    )
    noise: int = Field(64, gt=0, description="images of noise, used where neither file nor folder is given")
    batch_size: int = Field(32, gt=0, description="images evaluated at a time")

    def find_data(self, data_root: Path | None) -> zsqbench.DataFiles:
        """The files of both parts. Raises ZSQBenchError for a folder that is absent or holds no images."""
        files: dict[str, Path] = {} if self.file is None else {"file": self.file}
        folders = [] if self.file is None else [self.file]
        if self.folder is not None:
            found, _ = self._drawn(data_root)
            files |= {f"folder/{one.name}": one.path for one in found}
            folders.append(self._root(data_root))
        return zsqbench.DataFiles(files, {}, folders=folders)

    def find_model(self, model: zsqbench.ModelSpec) -> Mapping[str, Path]:
        """The model file and the weights file, where they exist. Raises ZSQBenchError for an unknown name."""
        return image_networks.find_model(model)

    def load(self, model: zsqbench.ModelSpec, ctx: zsqbench.StepContext) -> zsqbench.Pretrained:
        """Build the network and run it on empty images. Raises ZSQBenchError if that fails or gives no tensors."""
        import torch

        network = image_networks.load_network(model, ctx.note)
        shape = (2, *network.feeding.input_size)
        try:
            with torch.no_grad():
                outputs = _tensors(network.module(torch.zeros(shape)))
        except Exception as error:  # a user's network may fail in any way
            raise ZSQBenchError(
                f"model {model.name!r} fails on an input of {list(shape)}: {one_line(error)}"
            ) from error
        if not outputs:
            raise ZSQBenchError(f"model {model.name!r} returns no tensor of real numbers; the task needs one")
        return image_networks.pretrained_of(model, network, self._classes(model, outputs))

    @abstractmethod
    def _classes(self, model: zsqbench.ModelSpec, outputs: "list[torch.Tensor]") -> int | None:
        """The number of classes, or None. Raises ZSQBenchError where the task cannot evaluate the network."""

    def preprocessor(self, pretrained: zsqbench.Pretrained) -> "Callable[[Image], torch.Tensor]":
        """Resize, crop and normalise one image, in the same way as the images of the folder."""

        def preprocess(image: "Image") -> "torch.Tensor":
            samples = [Sample(id(image), UNLABELLED, lambda: eight_bit(image))]
            return image_networks.image_tensors(samples, pretrained, PixelCache(0))[0]

        return preprocess

    def calibration_images(
        self,
        count: int,  # noqa: ARG002
        seed: int,  # noqa: ARG002
        pretrained: zsqbench.Pretrained,  # noqa: ARG002
        ctx: zsqbench.TaskContext,  # noqa: ARG002
    ) -> zsqbench.CalibrationSet:
        """Raise ZSQBenchError: the task has no calibration images."""
        raise ZSQBenchError(f"task {self.name} has no images to calibrate on")

    def _root(self, data_root: Path | None) -> Path:
        assert self.folder is not None  # noqa: S101 - callers asked
        if self.folder.is_absolute():
            return self.folder
        if data_root is None:
            raise ZSQBenchError(f"folder {self.folder} needs a data root: give --data-root, or an absolute path")
        return data_root / self.folder

    def _drawn(self, data_root: Path | None) -> tuple[list[LabelledFile], list[str]]:
        """The images of the folder that are evaluated, and the names of all class folders."""
        root = self._root(data_root)
        if not root.is_dir():
            raise ZSQBenchError(f"there is no folder {root} of images to judge on")
        found = list_images(root)
        if not found:
            raise ZSQBenchError(f"{root} holds no images to judge on")
        names = sorted({file.class_name for file in found})
        if self.most is not None:
            kept = set(draw([file.name for file in found], self.most, 0))
            found = [file for file in found if file.name in kept]
        return found, names

    def _parts(self, pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext) -> list[_Part]:
        """The sets of images that are evaluated. The set of the headline figure comes last."""
        parts = []
        if self.file is not None:
            parts.append(self._tensor_part("synthetic", zsqbench.CalibrationSet.load(self.file).images, pretrained))
        if self.folder is not None:
            parts.append(self._folder_part(pretrained, ctx))
        return parts or [self._tensor_part("noise", _noise(self.noise, pretrained), pretrained)]

    def _tensor_part(self, name: str, images: "torch.Tensor", pretrained: zsqbench.Pretrained) -> _Part:
        if list(images.shape[1:]) != list(pretrained.input_size) or not len(images):
            expected = ", ".join(map(str, ["N", *pretrained.input_size]))
            raise ZSQBenchError(f"images in {self.file} are {list(images.shape)}; the network takes [{expected}]")

        import torch

        def batches() -> "Iterator[tuple[torch.Tensor, list[int]]]":
            for batch in torch.split(images.float(), self.batch_size):
                yield batch, [UNLABELLED] * len(batch)

        return _Part(name, len(images), batches)

    def _folder_part(self, pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext) -> _Part:
        found, names = self._drawn(ctx.data_root)
        labelled = "" not in names and len(names) == pretrained.classes
        if not labelled and len(names) > 1 and pretrained.classes:
            ctx.note(f"the images have no labels: they lie in {len(names)} folders, for {pretrained.classes} classes")
        from zsqbench.zoo.image_data import of_files

        samples = of_files(found, names).samples()

        def batches() -> "Iterator[tuple[torch.Tensor, list[int]]]":
            for start in range(0, len(samples), self.batch_size):
                images, labels = image_networks.image_tensors(
                    samples[start : start + self.batch_size], pretrained, _DECODED
                )
                yield images, labels.tolist() if labelled else [UNLABELLED] * len(images)

        return _Part("images", len(samples), batches)


class Agreement(_Judge):
    """Percent of held-out images for which the quantized and the float classifier have the same largest logit.

    The task also measures `fidelity` (see the task `fidelity`), and `top1` where the folder's images are labelled.
    """

    name: ClassVar[str] = "agreement"
    metric: ClassVar[str] = "agreement"

    def _classes(self, model: zsqbench.ModelSpec, outputs: "list[torch.Tensor]") -> int | None:
        if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:  # noqa: PLR2004 - images, classes
            shapes = ", ".join(str(list(output.shape)) for output in outputs)
            raise ZSQBenchError(
                f"model {model.name!r} is not a classifier: it returns {shapes} for 2 images; take the task fidelity"
            )
        return int(outputs[0].shape[1])

    def evaluate(
        self, module: "nn.Module", pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.Evaluation:
        """Compare the decisions image by image. Raises ZSQBenchError for outputs that are not finite."""
        metrics: dict[str, float] = {}
        agrees: list[bool] = []
        made: list[int] = []
        labels: list[int] = []
        for part in self._parts(pretrained, ctx):
            agrees, made, labels, error = [], [], [], _Error()
            for images, truth in part.batches():
                (logits,), (expected,) = _both(module, pretrained, images, ctx)
                error.add([logits], [expected])
                decided = logits.argmax(1)
                agrees += (decided == expected.argmax(1)).tolist()
                made += decided.tolist()
                labels += truth
                ctx.progress(len(agrees), part.count)
            metrics |= {
                f"{part.name}/agreement": 100 * sum(agrees) / len(agrees),
                f"{part.name}/fidelity": error.fidelity,
                f"{part.name}/samples": part.count,
            }
            if UNLABELLED not in labels:
                right = sum(one == other for one, other in zip(made, labels, strict=True))
                metrics["top1"] = 100 * right / len(labels)
        name = part.name  # the headline's
        metrics |= {"agreement": metrics[f"{name}/agreement"], "fidelity": metrics[f"{name}/fidelity"]}
        known = labels if UNLABELLED not in labels else []
        return zsqbench.Evaluation({**metrics, "samples": len(agrees)}, agrees, made, known)


class Fidelity(_Judge):
    """Closeness of the quantized network's outputs to the float network's: 100 (1 - |y - y'| / |y|), at most 100.

    The norms are Euclidean, over all values of all outputs of all images. A value below 0 means that zeros would be
    closer to the float network's outputs.
    """

    name: ClassVar[str] = "fidelity"
    metric: ClassVar[str] = "fidelity"

    def _classes(self, model: zsqbench.ModelSpec, outputs: "list[torch.Tensor]") -> int | None:  # noqa: ARG002
        return None

    def evaluate(
        self, module: "nn.Module", pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.Evaluation:
        """Compare all outputs. Raises ZSQBenchError where all of the float network's outputs are zero."""
        metrics: dict[str, float] = {}
        for part in self._parts(pretrained, ctx):
            error, done = _Error(), 0
            for images, _ in part.batches():
                error.add(*_both(module, pretrained, images, ctx))
                done += len(images)
                ctx.progress(done, part.count)
            metrics |= {f"{part.name}/fidelity": error.fidelity, f"{part.name}/samples": part.count}
        return zsqbench.Evaluation({**metrics, "fidelity": metrics[f"{part.name}/fidelity"], "samples": part.count})


@dataclass
class _Error:
    """Sums of squares of the float network's outputs, and of their differences from the quantized network's."""

    norm: float = 0.0
    difference: float = 0.0

    def add(self, outputs: "list[torch.Tensor]", expected: "list[torch.Tensor]") -> None:
        for output, wanted in zip(outputs, expected, strict=True):
            self.norm += float(wanted.double().square().sum())
            self.difference += float((output.double() - wanted.double()).square().sum())

    @property
    def fidelity(self) -> float:
        """100 (1 - relative error). Raises ZSQBenchError where outputs are zero throughout or not finite."""
        if self.norm == 0 or not math.isfinite(self.norm):
            raise ZSQBenchError("the float network's outputs are all zero or not finite, so no relative error exists")
        if not math.isfinite(self.difference):
            raise ZSQBenchError("the quantized network's outputs are not finite")
        return 100 * (1 - math.sqrt(self.difference / self.norm))


def _both(
    module: "nn.Module", pretrained: zsqbench.Pretrained, images: "torch.Tensor", ctx: zsqbench.TaskContext
) -> "tuple[list[torch.Tensor], list[torch.Tensor]]":
    """The outputs of a network and of the float network, on the CPU."""
    fed = images.to(ctx.device)
    outputs, expected = (
        [tensor.float().cpu() for tensor in _tensors(network(fed))] for network in (module, pretrained.module)
    )
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
        raise ZSQBenchError("the quantized network and the float network return different tensors")
    return outputs, expected


def _tensors(output: object) -> "list[torch.Tensor]":
    """The tensors of real numbers in a network's return value, in any container."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, list | tuple) else []


def _noise(count: int, pretrained: zsqbench.Pretrained) -> "torch.Tensor":
    """Seeded normal noise within the valid range of pixels."""
    import torch

    low, high = pretrained.valid_range()
    noise = torch.randn(count, *pretrained.input_size, generator=torch.Generator().manual_seed(0))
    return noise.maximum(low).minimum(high)


@zsqbench.hookimpl
def register_tasks() -> list[type[zsqbench.Task]]:
    """Provide `agreement` and `fidelity`."""
    return [Agreement, Fidelity]
