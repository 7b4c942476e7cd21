"""The parts of a step's context that learning uses: random numbers, curves, progress, checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])


class LearningContext(Protocol):
    """The part that reconstruction uses."""

    device: torch.device
    rng: torch.Generator

    def log(self, name: str, value: float | Tensor, step: int = 0) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Report progress."""

    def note(self, line: str) -> None:
        """Keep a line for people."""

    def images_read(self, count: int) -> None:
        """Report how many images of the calibration set were read."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state for resuming."""

    def resume(self) -> dict[str, Any] | None:
        """The last kept state."""

    def compile(self, function: F) -> F:
        """Compile a function if the settings say so."""


class TrainingContext(LearningContext, Protocol):
    """The part that fine-tuning uses."""

    def keep_epoch(self, epoch: int, student: nn.Module) -> None:
        """Keep a copy of the student after an epoch."""
