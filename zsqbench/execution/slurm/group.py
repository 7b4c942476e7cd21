"""The function of a job: a group of steps, each of which leaves its answer as a file in the home folder.

So a step is done as soon as its answer is there, and a job that Slurm starts anew goes on with the step that it was at.
"""

import base64
import contextlib
import json
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import one_line
from zsqbench.execution.nodes import Conditions, end_workers
from zsqbench.execution.processes import Answer
from zsqbench.execution.reporter import CHECKPOINT
from zsqbench.execution.session import WorkerConfig
from zsqbench.methods.engine import NotBegunError
from zsqbench.steps import Job, Outcome
from zsqbench.store import Store, write_atomically

if TYPE_CHECKING:
    import submitit

ENDS = 5
"""A step fails whose job was ended so often without a new checkpoint, by whatever ended it."""


@dataclass(frozen=True)
class Group:
    """The function of a job: steps to be done one after the other, each of which leaves its answer as a file."""

    folder: Path
    """Where the files are, below the home folder."""
    conditions: Conditions
    fn: Callable[[WorkerConfig, Job], Outcome]
    """Does a step."""
    config: WorkerConfig
    jobs: tuple[Job, ...]
    after: tuple[tuple[int, ...], ...]
    """For each step, those before it that have to end well first."""

    def __call__(self) -> None:
        """Do what has no answer yet."""
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        with (self.folder / "nodes").open("a", encoding="utf-8") as nodes:
            nodes.write(f"{node}\n")
        if faults := self.conditions.look({}):
            write_atomically(self.folder / "fault", "; ".join(faults))
            return
        try:
            answers: list[Answer] = []
            for place in range(len(self.jobs)):
                answers.append(self._answered(place, answers))
        finally:
            end_workers()

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Called by submitit where Slurm is about to end the job: it is put back, and goes on by its files."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def answer(self, place: int) -> Answer | None:
        """The answer to a step, if it is there."""
        try:
            text = self._file(place, "answer").read_bytes()
        except FileNotFoundError:
            return None
        answer: Answer = pickle.loads(base64.b64decode(text))  # noqa: S301 - a job of this run wrote it
        return answer

    def begun(self, place: int) -> bool:
        """True if a step was begun."""
        return self._file(place, "begun").exists()

    def nodes(self) -> list[str]:
        """The nodes on which the job was started, the last one last."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "nodes").read_text(encoding="utf-8").split()
        return []

    def fault(self) -> str | None:
        """The reason why its node cannot do steps, if it found one."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "fault").read_text(encoding="utf-8")
        return None

    def _file(self, place: int, what: str) -> Path:
        return self.folder / f"{place}.{what}"

    def _answered(self, place: int, before: Sequence[Answer]) -> Answer:
        """The answer to a step, which is done unless it was before."""
        there = self.answer(place)
        if there is not None:
            return there
        answer = self._not_to_do(place, before) or self._ended_too_often(place)
        if answer is None:
            answer = self._do(self.jobs[place])
        try:
            content = pickle.dumps(answer)
        except Exception as error:  # noqa: BLE001 - what cannot be pickled
            content = pickle.dumps(Answer(error=RuntimeError(one_line(error))))
        write_atomically(self._file(place, "answer"), base64.b64encode(content).decode())
        return answer

    def _do(self, job: Job) -> Answer:
        """Do a step. Lets SystemExit through, by which submitit ends a job that it has put back."""
        try:
            return Answer(self.conditions.call(self.fn, self.config, job))
        except Exception as error:  # noqa: BLE001 - whatever it was, the run is told
            return Answer(error=error)

    def _not_to_do(self, place: int, before: Sequence[Answer]) -> Answer | None:
        """The answer of a step that needs one which did not end well."""
        for need in (before[each] for each in self.after[place]):
            if need.error is not None:
                return Answer(error=NotBegunError("a step that it needs did not end"))
            if isinstance(need.value, Outcome) and need.value.status != "done":
                return Answer(Outcome("blocked", error=need.value.cause))
        return None

    def _ended_too_often(self, place: int) -> Answer | None:
        """Note that a step begins; the answer of one whose job was ended too often before it came further."""
        kept = Store(self.config.home).partial(self.jobs[place].key) / CHECKPOINT
        checkpoint, times = _modified(kept), 1
        with contextlib.suppress(FileNotFoundError):
            before = json.loads(self._file(place, "begun").read_text(encoding="utf-8"))
            times = before["times"] + 1 if before["checkpoint"] == checkpoint else 1
        if times > ENDS:
            nodes = ", ".join(self.nodes())
            return Answer(Outcome("failed", error=f"its job was ended {ENDS} times before it came further, on {nodes}"))
        write_atomically(self._file(place, "begun"), json.dumps({"times": times, "checkpoint": checkpoint}))
        return None


def _modified(path: Path) -> int | None:
    """When a file was last written to, in nanoseconds; None where it is not there."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None
