"""What a method may use besides its arguments: device, seeded randomness, reporting, checkpoints."""

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
    """Where a step's context sends what it is told; implemented by the worker. See `StepContext` for what they mean."""

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Note how far the step is."""

    def note(self, line: str) -> None:
        """Keep a line for people."""

    def footnote(self, line: str) -> None:
        """Keep a line for people that stands below tables, too."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a state, now and then."""

    def resume(self) -> dict[str, Any] | None:
        """The state kept last."""

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep a student as it is after an epoch."""


@dataclass
class StepContext:
    """What a method may use besides its arguments: device, seeded randomness, reporting, checkpoints."""

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
    """How many images of the calibration set were read, as far as `images_read` was told; none: the whole set."""
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
        """Say how far the method is."""
        self.reporter.progress(done, total)

    def note(self, line: str) -> None:
        """Say in one line what the method found or decided. Notes are kept with the artifact; `zsqbench show` has them.

        A line is kept once, however often it is said.
        """
        self.reporter.note(line)

    def footnote(self, line: str) -> None:
        """Say in one line what whoever reads the result in a table must know: a note that is a footnote there, too.

        For what a method expects to cost accuracy, with what to do. A line that all its results would have belongs into
        its description. A result that is made of this one has the footnote, too.
        """
        self.reporter.footnote(line)

    def images_read(self, count: int) -> None:
        """Say that only the first `count` images of the calibration set were read; the largest number counts.

        For a quantizer that leaves some out, such as those that fill no batch, or that are more than it searches on. A
        random draw from the set is one from all of it. Whoever says nothing has read the whole set.
        """
        self.read = max(count, self.read or 0)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state (tensors, numbers, strings, by name) to resume from; it is written every few seconds at most.

        The state of `rng` is kept with it. Raises ZSQBenchError for a state that is not flat: tensors are values of the
        state itself, and all other values are what JSON holds, with text as keys.
        """
        self.reporter.checkpoint(state)

    def resume(self) -> dict[str, Any] | None:
        """The state that an interrupted run of this very step left, with `rng` set back to it, or none."""
        return self.reporter.resume()

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep a copy of the student as the result would be if training ended with this epoch.

        Only for a quantizer that said so (`keeps_epochs`). The result is the student that `quantize` leaves, all the
        same. After an interruption, the copies that were kept are still there.
        """
        self.reporter.keep_epoch(epoch, student)

    def compile(self, function: F, *, twice: bool = False) -> F:
        """The function, compiled where the settings say so; `twice`: so that it can be differentiated twice.

        The same function of a later step is not compiled again: what differs must be in arguments, in tensors, or in
        attributes of the same types. Raises ZSQBenchError where there is no compiler.
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
    """A step context that also knows where the data is: for tasks alone."""

    data_root: Path | None = None
    folder: Path | None = None
    """Where a task may keep data that it makes; methods cannot open files there."""
