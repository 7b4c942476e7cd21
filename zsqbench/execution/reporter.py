"""The reporter of a running step: curves, notes, progress, checkpoints, kept epochs."""

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import OutOfResourcesError, ZSQBenchError, one_line
from zsqbench.steps.students import kept_epochs, on_cpu, state_of
from zsqbench.store import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

CHECKPOINT = "checkpoint.safetensors"
"""The file of the last checkpoint, in the folder of a step."""
PROGRESS_SECONDS = 0.2
CHECKPOINT_SECONDS = 5.0
CHECKPOINT_PAUSE = 20
"""The pause after a long checkpoint, in times of its seconds. A checkpoint of a large generator takes seconds."""

QUICK = 0.1
"""A checkpoint that takes fewer seconds does not count as long."""

SHOWN_CURVES = 3
"""So many curves are shown with the progress, by their last value: the curves that began last."""

FLAT = (
    "only values of the state itself may be tensors, and all others are what JSON holds, with text as keys; "
    "zsqbench.synthesis.training_state makes such a state of a network and its optimizer"
)
"""The rule of a state that a checkpoint can keep."""


def require_flat(state: Mapping[str, Any]) -> None:
    """Raise ZSQBenchError, with the place in it and the rule, for a state that a checkpoint cannot keep as it is."""
    import torch

    if "rng" in state:
        raise ZSQBenchError("a checkpoint has no entry named 'rng': the state of ctx.rng is kept under it")
    plain = {name: None if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    if problem := next(_unfit("state", plain), None):
        raise ZSQBenchError(f"a checkpoint cannot keep {problem}: {FLAT}")


def _unfit(place: str, value: object) -> Iterator[str]:
    """The parts of a value that JSON does not give back, each with its place; a tuple that becomes a list is none."""
    import torch

    if isinstance(value, dict):
        for key, part in value.items():
            yield from _unfit(f"{place}[{key!r}]", part)
        yield from (f"{place} with the key {key!r}" for key in value if not isinstance(key, str))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _unfit(f"{place}[{index}]", part)
    elif not isinstance(value, str | int | float | None):
        yield f"{place}, {'a tensor' if isinstance(value, torch.Tensor) else f'of type {type(value).__name__}'}"


class Reporter:
    """Keeps curves, notes and checkpoints, and shows progress in a small file that the parent reads."""

    def __init__(self, folder: Path, rng: "torch.Generator") -> None:
        self.folder = folder
        self.rng = rng
        self.curves: dict[str, list[tuple[int, Any]]] = {}
        self.notes: list[str] = []
        self.footnotes: list[str] = []
        """The notes that are also footnotes of tables."""
        self._shown_curves: list[str] = []
        self.started = time.perf_counter()
        self._done = self._total = 0
        self._shown = time.monotonic()
        self._next_checkpoint = self._shown + CHECKPOINT_SECONDS
        self._offered = False

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Add a point to a curve."""
        self.curves.setdefault(name, []).append((step, value.detach().clone() if hasattr(value, "detach") else value))
        if name not in self._shown_curves:
            self._shown_curves = [*self._shown_curves, name][-SHOWN_CURVES:]
        self._show()

    def progress(self, done: int, total: int) -> None:
        """Show the progress of the step."""
        self._done, self._total = done, total
        self._show()

    def note(self, line: str) -> None:
        """Keep a line for people, once."""
        if line not in self.notes:
            self.notes.append(line)

    def footnote(self, line: str) -> None:
        """Keep a line for people, once, that is also a footnote of tables."""
        self.note(line)
        if line not in self.footnotes:
            self.footnotes.append(line)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a state for resuming, every few seconds.

        Raises ZSQBenchError at the first call with a state that is not flat. A fast machine would not find it later.
        """
        started = time.monotonic()
        if not self._offered:
            require_flat(state)
            self._offered = True
        if started >= self._next_checkpoint:
            with contextlib.suppress(OSError):  # a checkpoint that cannot be kept costs time, not the step
                self.keep(state)
            ended = time.monotonic()
            long = ended - started if ended - started > QUICK else 0.0
            self._next_checkpoint = ended + max(CHECKPOINT_SECONDS, CHECKPOINT_PAUSE * long)

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep a state now. Raises ZSQBenchError for one that is not flat, and OSError where it cannot be written."""
        import torch
        from safetensors.torch import save

        require_flat(state)
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        plain = {name: value for name, value in state.items() if name not in tensors}
        tensors = {**on_cpu(tensors), "rng": self.rng.get_state()}
        note = {
            "state": json.dumps(plain),
            "curves": json.dumps(self.read_curves()),
            "notes": json.dumps(self.notes),
            "footnotes": json.dumps(self.footnotes),
        }
        self._write(CHECKPOINT, save(tensors, metadata=note))

    def resume(self) -> dict[str, Any] | None:
        """The last kept state. Curves, notes and random numbers are set back to it. None: there is no state."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / CHECKPOINT, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                kept = {name: json.loads(text) for name, text in file.metadata().items()}
            curves = {name: [tuple(point) for point in points] for name, points in kept["curves"].items()}
            rng, notes, footnotes = tensors.pop("rng"), list(kept["notes"]), list(kept.get("footnotes", []))
            state: dict[str, Any] = tensors | kept["state"]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
            self.note(f"the step started again: its checkpoint is damaged ({one_line(error)})")
            return None
        try:
            self.rng.set_state(rng)
        except RuntimeError:
            self.note("the step started again: its checkpoint has random numbers of another kind of device")
            return None
        self.curves, self.notes, self.footnotes = curves, notes, footnotes
        return state

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep the student as it would be if training ended with this epoch."""
        import torch
        from safetensors.torch import save

        from zsqbench.quant import finalize

        with torch.no_grad(), torch.autocast(self.rng.device.type, enabled=False):
            finished = copy.deepcopy(student)
            finalize(finished)
            content = save(state_of(finished))
        try:
            self._write(f"epoch-{epoch:04}.safetensors", content)
        except OSError as error:
            raise OutOfResourcesError(f"cannot keep epoch {epoch} in {self.folder}: {error.strerror}") from error

    def epochs(self) -> dict[int, Path]:
        """The kept students, of this attempt and of interrupted attempts before."""
        return kept_epochs(self.folder)

    def keep_curves(self) -> Path | None:
        """Keep the curves of a failed step for inspection, and return their path. None: it logged none."""
        try:
            return self._write("curves.json", json.dumps(self.read_curves()).encode()) if self.curves else None
        except OSError:  # a full disk must not hide the first error
            return None

    def keep_last_good(self, state: Mapping[str, Any]) -> Path | None:
        """Keep the tensors of a state for inspection, and return their path. No step resumes from them."""
        import torch
        from safetensors.torch import save

        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            return None
        try:
            return self._write("last-good.safetensors", save(on_cpu(tensors)))
        except OSError:  # a full disk must not hide the first error
            return None

    def _write(self, name: str, content: bytes) -> Path:
        """Write a file so that it is complete or absent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}"
        temporary.write_bytes(content)
        return temporary.replace(self.folder / name)

    def read_curves(self) -> dict[str, list[tuple[int, float]]]:
        """The curves as numbers."""
        return {name: [(step, float(value)) for step, value in points] for name, points in self.curves.items()}

    def clear(self) -> None:
        """Remove the files that only a running step needs."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if not path.is_dir():  # a folder is not ours, so it stays
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        last = {name: float(self.curves[name][-1][1]) for name in self._shown_curves}
        text = json.dumps({"done": self._done, "total": self._total, "values": last})
        with contextlib.suppress(OSError):  # progress that cannot be shown is no reason to stop
            write_atomically(self.folder / "progress.json", text)
