"""A step's context without a harness: everything that a method reports stays in memory."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.reporter import require_flat
from zsqbench.methods import Settings, TaskContext
from zsqbench.quant import finalize
from zsqbench.scheme import Scheme


class MemoryReporter:
    """Keeps what a method reports, every state that it offers as a checkpoint, and the students of epochs."""

    def __init__(self, resume_from: Mapping[str, Any] | None = None, rng: torch.Generator | None = None) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.notes: list[str] = []
        self.footnotes: list[str] = []
        self.states: list[dict[str, Any]] = []
        self.epochs: dict[int, torch.nn.Module] = {}
        self._resume_from = resume_from
        self._rng = rng

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Keep a point of a curve."""
        value = value.detach() if isinstance(value, torch.Tensor) else value
        self.curves.setdefault(name, []).append((step, float(value)))

    def progress(self, done: int, total: int) -> None:
        """Check that it makes sense."""
        assert 0 <= done <= total, f"progress {done} of {total}"  # noqa: S101 - this is a check

    def note(self, line: str) -> None:
        """Keep a line."""
        self.notes.append(line)

    def footnote(self, line: str) -> None:
        """Keep a line as a note and as a footnote."""
        self.note(line)
        self.footnotes.append(line)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a copy of a state, as a file would. Raises ZSQBenchError for one that no file would hold."""
        require_flat(state)
        state = {
            name: value.detach().contiguous() if isinstance(value, torch.Tensor) else value
            for name, value in state.items()
        }
        state |= {"rng": self._rng.get_state()} if self._rng else {}
        self.states.append(copy.deepcopy(state))

    def resume(self) -> dict[str, Any] | None:
        """The state to go on from, with the random generator set back."""
        if self._resume_from is None:
            return None
        state = copy.deepcopy(dict(self._resume_from))
        if self._rng is not None:
            self._rng.set_state(state.pop("rng"))
        return state

    def keep_epoch(self, epoch: int, student: torch.nn.Module) -> None:
        """Keep a finalized copy of a student, as a worker would in a file."""
        kept = copy.deepcopy(student)
        finalize(kept)
        self.epochs[epoch] = kept


class PatientReporter(MemoryReporter):
    """Remembers why a checkpoint would end a run, and goes on, so that all else is checked, too."""

    refusal: str | None = None

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a copy of a state, or the reason against it."""
        try:
            super().checkpoint(state)
        except ZSQBenchError as error:
            self.refusal = self.refusal or str(error)


class ForgetfulReporter(MemoryReporter):
    """Keeps no state and no student, for a check of the memory that a method itself takes."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Drop it."""

    def keep_epoch(self, epoch: int, student: torch.nn.Module) -> None:
        """Drop it."""


def context(
    seed: int = 0,
    resume_from: Mapping[str, Any] | None = None,
    data_root: Path | None = None,
    folder: Path | None = None,
    scheme: Scheme | None = None,
) -> TaskContext:
    """A context on the CPU, as a worker would give it; its reporter keeps everything in memory.

    A quantizer is given the scheme that the student was prepared for.
    """
    rng = torch.Generator().manual_seed(seed)
    reporter = MemoryReporter(resume_from, rng)
    return TaskContext(
        torch.device("cpu"), seed, rng, Settings(), reporter, scheme=scheme, data_root=data_root, folder=folder
    )
