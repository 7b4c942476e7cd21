"""The base of all tasks, their files, and their measurements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.base import Kind, Method
from zsqbench.methods.modelspec import ModelSpec

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from zsqbench.methods.context import StepContext, TaskContext
    from zsqbench.methods.data import CalibrationSet, Pretrained


@dataclass(frozen=True)
class DataFiles:
    """The files that a task reads. The harness hashes and watches them, and reports early that they are missing.

    Names are relative and the same on all machines. `split` contains everything else that assigns samples to parts.
    """

    evaluation: Mapping[str, Path]
    calibration: Mapping[str, Path]
    split: Mapping[str, Any] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    """Folders in which no method may open files."""
    absent: str | None = None
    """The reason why named calibration images are absent. It is an error only for cells with real images."""
    classes: Sequence[str] = ()
    """Names of the classes, in the order of a classifier's outputs; empty where the data has none."""
    samples: int | None = None
    """Number of evaluated images, if it is known without reading them. None: about the number of files. Only estimates
    of times use it."""


class Task(Method, ABC):
    """Loads networks, measures their accuracy, and hands out calibration images that it does not evaluate."""

    kind: ClassVar[Kind] = "task"
    seeded: ClassVar[bool] = False
    metric: ClassVar[str]
    """The metric that leaderboards show, a key of `Evaluation.metrics`; higher is better."""

    @abstractmethod
    def find_data(self, data_root: Path | None) -> DataFiles:
        """Find the data without torch. Raises ZSQBenchError where it is absent or empty."""

    @abstractmethod
    def find_model(self, model: ModelSpec) -> Mapping[str, Path]:
        """The files that define a model, without torch, as far as they are known before loading.

        Raises ZSQBenchError for a model that this task does not know.
        """

    @abstractmethod
    def load(self, model: ModelSpec, ctx: "StepContext") -> "Pretrained":
        """Load a network with its weights and preprocessing. Tables show the notes of `ctx.note`.

        A task of detectors also hands out their training loss and boxes (`Pretrained.detection`). Methods can then
        train on boxes without the task and its data.
        """

    @abstractmethod
    def evaluate(self, module: "nn.Module", pretrained: "Pretrained", ctx: "TaskContext") -> "Evaluation":
        """Measure a network (the float one, or a quantized copy) on the evaluation data."""

    def preprocessor(self, pretrained: "Pretrained") -> "Callable[[Image], torch.Tensor]":  # noqa: ARG002
        """A function from a PIL image to a tensor [1, C, H, W] for a network, as in evaluation; on the CPU.

        It is for use of a network outside of the harness. Raises ZSQBenchError where the task has none.
        """
        raise ZSQBenchError(f"task {self.name} does not say how one image is preprocessed; define preprocessor()")

    def picture(
        self,
        module: "nn.Module",  # noqa: ARG002
        pretrained: "Pretrained",  # noqa: ARG002
        ctx: "TaskContext",  # noqa: ARG002
    ) -> "Image | None":
        """A picture for readers that compares a quantized network with the float one. By default None."""
        return None

    def viewer(self, data_root: Path | None) -> "Callable[[int], Image] | None":  # noqa: ARG002
        """A function from an evaluated sample's index to its image, as stored in the data. By default None.

        A report asks for it after all measurements, so that readers see the samples that a quantized network gets
        wrong. Methods never get it. Raises ZSQBenchError where the data is absent.
        """
        return None

    @abstractmethod
    def calibration_images(
        self, count: int, seed: int, pretrained: "Pretrained", ctx: "TaskContext"
    ) -> "CalibrationSet":
        """Real images, preprocessed for this network, none of them evaluated; fewer where there are no more."""


@dataclass(frozen=True)
class Evaluation:
    """The measurements of a task: named metrics (accuracies in percent), and the samples that were right."""

    metrics: Mapping[str, float]
    per_sample: Sequence[bool] = ()
    predictions: Sequence[int] = ()
    """The prediction for each sample, such as the index of a class; below 0 for no prediction. From predictions the
    harness counts the samples on which a quantized network agrees with the float one."""
    labels: Sequence[int] = ()
    """The truth of each sample, such as the index of its class. It is kept with the float network's measurement."""
    difficulties: Sequence[float] = ()
    """Difficulty of each sample, from 0 to 1: one minus the probability of its label (GHM; HAST, Eq. 7).
    The float network's difficulties are kept, so that a report can group errors by them."""
    resampled: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Values on each of `zsqbench.resamples(samples)`, by name, of metrics that are not the share of right samples.
    Without them tables cannot tell which methods differ significantly in the metric."""
    tensors: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """Other data of each sample, such as boxes, so that any statistic can be computed later."""
