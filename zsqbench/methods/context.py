"""The context of a method: device, seeded randomness, reporting, checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.data import CalibrationSet
from zsqbench.methods.settings import Settings
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zsqbench.methods.quantizer import Quantizer


F = TypeVar("F", bound=Callable[..., Any])


class ReportsProgress(Protocol):
    """Receiver of a step context's reports, implemented by the worker. `StepContext` explains the calls."""

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Note the progress of the step."""

    def note(self, line: str) -> None:
        """Keep a line for readers."""

    def footnote(self, line: str) -> None:
        """Keep a line for readers that also stands below tables."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a state from time to time."""

    def resume(self) -> dict[str, Any] | None:
        """The last kept state, or None."""

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep the student's state after an epoch."""


@dataclass
class StepContext:
    """The context of a method: device, seeded randomness, reporting, checkpoints."""

    device: "torch.device"
    seed: int
    rng: "torch.Generator"
    """A generator on `device`, seeded; all randomness of a method comes from it."""
    settings: Settings
    reporter: ReportsProgress
    real_images: CalibrationSet | None = None
    """Real images, for a generator with `uses_real_data` only."""
    scheme: Scheme | None = None
    """The scheme that the student was prepared for, for a quantizer only."""
    read: int | None = None
    """Number of images of the calibration set that were read, from `images_read`. None: the whole set."""
    start: "nn.Module | None" = None
    """The finalized student of the quantizer that the option `start` names, for a quantizer that has one only."""
    over: "Quantizer | None" = None
    """The quantizer that the option `over` names, with its options, for a quantizer that has one only."""

    def randn(self, *shape: int) -> "torch.Tensor":
        """Standard normal numbers on the device, from `rng`."""
        import torch

        return torch.randn(*shape, generator=self.rng, device=self.device)

    def rand(self, *shape: int) -> "torch.Tensor":
        """Uniform numbers in [0, 1) on the device, from `rng`."""
        import torch

        return torch.rand(*shape, generator=self.rng, device=self.device)

    def log(self, name: str, value: "float | torch.Tensor", step: int = 0) -> None:
        """Add a point to a curve. Curves are kept with the artifact and go to MLflow.

        A scalar tensor is read when it is shown, not now, so that logging does not hold up a GPU.
        """
        self.reporter.log(name, value, step)

    def progress(self, done: int, total: int) -> None:
        """Report the progress of the method."""
        self.reporter.progress(done, total)

    def note(self, line: str) -> None:
        """Say in one line what the method found or decided.

        Notes are kept with the artifact; `zsqbench show` prints them. Repeated lines are kept once.
        """
        self.reporter.note(line)

    def footnote(self, line: str) -> None:
        """Say in one line what a reader of a table must know about the result: a note that tables show too.

        Use it for effects that probably cost accuracy, and say what to do. A line that applies to all results of a
        method belongs into the method's description. A result that is made from this one also has the footnote.
        """
        self.reporter.footnote(line)

    def images_read(self, count: int) -> None:
        """Say that only the first `count` images of the calibration set were read; the largest number counts.

        It is for a quantizer that leaves some images out, such as those that fill no batch, or those beyond its search.
        A random draw from the set reads all of it. A method that does not call this has read the whole set.
        """
        self.read = max(count, self.read or 0)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state (tensors, numbers, strings, by name) to resume from; it is written every few seconds at most.

        The state of `rng` is kept with it. Raises ZSQBenchError for a state that is not flat: tensors are values of the
        state itself, and all other values are what JSON holds, with text as keys.
        """
        self.reporter.checkpoint(state)

    def resume(self) -> dict[str, Any] | None:
        """The state that an interrupted run of this step left, or None. `rng` is set back to it."""
        return self.reporter.resume()

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep a copy of the student: the result if training ended with this epoch.

        Only for a quantizer with `keeps_epochs`. The result is still the student that `quantize` leaves. After an
        interruption, the kept copies still exist.
        """
        self.reporter.keep_epoch(epoch, student)

    def compile(self, function: F, *, twice: bool = False) -> F:
        """The function, compiled where the settings say so. With `twice` it can be differentiated twice.

        The same function of a later step is not compiled again. Differences between steps must be in arguments, in
        tensors, or in attributes of the same types. Raises ZSQBenchError where there is no compiler.
        """
        if not self.settings.compile:
            return function
        import torch

        from zsqbench.compat import differentiable_twice
        from zsqbench.methods.inductor import set_up

        if self.device.type == "cpu":
            _require_compiler()
        set_up(self.device)
        compiled = cast("F", torch.compile(function))
        return differentiable_twice(compiled) if twice else compiled


def _require_compiler() -> None:
    from zsqbench.compat import finds_compiler

    if not finds_compiler():
        raise ZSQBenchError(
            "settings.compile is true, and torch finds no C++ compiler; install g++, name one in the variable CXX, or "
            "leave compile out"
        )


@dataclass
class TaskContext(StepContext):
    """A step context that also gives the place of the data; for tasks alone."""

    data_root: Path | None = None
    folder: Path | None = None
    """Folder for data that a task makes. Methods cannot open files there."""
