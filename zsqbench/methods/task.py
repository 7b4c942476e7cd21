"""The base of all tasks, the files that they read, and what they measure."""

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
    """The files that a task reads, so that the harness can hash them, watch them and say early that they are missing.

    Names are relative and stable across machines; `split` is whatever else decides which sample is in which part.
    """

    evaluation: Mapping[str, Path]
    calibration: Mapping[str, Path]
    split: Mapping[str, Any] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    """Folders that no method may open files in."""
    absent: str | None = None
    """Why there are no images to calibrate on, where the task was told of some: an error for cells that are given real
    images, and for no others."""
    classes: Sequence[str] = ()
    """Names of the classes, in the order of a classifier's outputs, where the data has such."""
    samples: int | None = None
    """How many images are evaluated, where that is known without reading them; none: about as many as files. Only times
    are estimated by it."""


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
        """The files that define a model, without torch, as far as they are known before it is loaded.

        Raises ZSQBenchError for a model that this task does not know.
        """

    @abstractmethod
    def load(self, model: ModelSpec, ctx: "StepContext") -> "Pretrained":
        """Load a network with its weights and its own preprocessing; tables show what `ctx.note` is told meanwhile.

        A task of detectors hands out their training loss and their boxes with them (`Pretrained.detection`), so that
        methods can train on boxes without the task and its data.
        """

    @abstractmethod
    def evaluate(self, module: "nn.Module", pretrained: "Pretrained", ctx: "TaskContext") -> "Evaluation":
        """Measure a network (the float one, or a quantized copy) on the evaluation data."""

    def preprocessor(self, pretrained: "Pretrained") -> "Callable[[Image], torch.Tensor]":  # noqa: ARG002
        """A function that makes a PIL image a tensor [1, C, H, W] for a network, as evaluation does; on the CPU.

        For those who use a network outside of the harness. Raises ZSQBenchError where the task does not say.
        """
        raise ZSQBenchError(f"task {self.name} does not say how one image is preprocessed; give it a preprocessor()")

    def picture(
        self,
        module: "nn.Module",  # noqa: ARG002
        pretrained: "Pretrained",  # noqa: ARG002
        ctx: "TaskContext",  # noqa: ARG002
    ) -> "Image | None":
        """What people should see of a quantized network, beside the float one; by default, nothing."""
        return None

    def viewer(self, data_root: Path | None) -> "Callable[[int], Image] | None":  # noqa: ARG002
        """A function that shows an evaluated sample by its place, as it lies in the data; by default, none.

        A report asks for it, when all is measured: people see which samples a quantized network gets wrong. No method
        is given it. Raises ZSQBenchError where the data is absent.
        """
        return None

    @abstractmethod
    def calibration_images(
        self, count: int, seed: int, pretrained: "Pretrained", ctx: "TaskContext"
    ) -> "CalibrationSet":
        """Real images, preprocessed for this network, none of which is evaluated; fewer where there are no more."""


@dataclass(frozen=True)
class Evaluation:
    """What a task measured: named metrics (accuracies in percent), and which samples were right."""

    metrics: Mapping[str, float]
    per_sample: Sequence[bool] = ()
    predictions: Sequence[int] = ()
    """What was predicted of each sample, such as the index of a class; below 0 where nothing was. With them, the
    harness says on how many samples a quantized network agrees with the float one."""
    labels: Sequence[int] = ()
    """The truth of each sample, such as the index of its class; kept once, with the float network's measurement."""
    difficulties: Sequence[float] = ()
    """How hard each sample is for the network, from 0 to 1: one minus the probability of its label, as GHM and HAST
    (Eq. 7) measure it. Those of the float network are kept, so that a report tells errors by them."""
    resampled: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """For a metric that is not the share of samples that are right: its value on each of `zsqbench.resamples(samples)`,
    by name. Without them tables cannot say which methods can be told apart by it."""
    tensors: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """What else there is of each sample, such as boxes, so that any statistic can be computed later."""
