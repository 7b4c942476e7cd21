"""The function of a job: a group of steps. Each step leaves its answer as a file in the home folder.

A step is done as soon as its answer exists. A job that Slurm restarts continues with the interrupted step.
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
"""A step fails after its job was ended so many times without a new checkpoint."""


@dataclass(frozen=True)
class Group:
    """The function of a job: steps that are done in sequence. Each leaves its answer as a file."""

    folder: Path
    """The folder of the files, below the home folder."""
    conditions: Conditions
    fn: Callable[[WorkerConfig, Job], Outcome]
    """The function that does a step."""
    config: WorkerConfig
    jobs: tuple[Job, ...]
    after: tuple[tuple[int, ...], ...]
    """For each step, the indices of earlier steps that must succeed first."""

    def __call__(self) -> None:
        """Do the steps that have no answer yet."""
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
        """Requeue the job, which resumes from its files. Called by submitit when Slurm is about to end the job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def answer(self, place: int) -> Answer | None:
        """The answer to a step. None: there is no answer yet."""
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
        """Why its node cannot do steps. None: it found no reason."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "fault").read_text(encoding="utf-8")
        return None

    def _file(self, place: int, what: str) -> Path:
        return self.folder / f"{place}.{what}"

    def _answered(self, place: int, before: Sequence[Answer]) -> Answer:
        """The answer to a step. The step is done if there is no answer yet."""
        there = self.answer(place)
        if there is not None:
            return there
        answer = self._not_to_do(place, before) or self._ended_too_often(place)
        if answer is None:
            answer = self._do(self.jobs[place])
        try:
            content = pickle.dumps(answer)
        except Exception as error:  # noqa: BLE001 - the answer cannot be pickled
            content = pickle.dumps(Answer(error=RuntimeError(one_line(error))))
        write_atomically(self._file(place, "answer"), base64.b64encode(content).decode())
        return answer

    def _do(self, job: Job) -> Answer:
        """Do a step. SystemExit passes on: submitit uses it to end a job that it has requeued."""
        try:
            return Answer(self.conditions.call(self.fn, self.config, job))
        except Exception as error:  # noqa: BLE001 - the run is told of any exception
            return Answer(error=error)

    def _not_to_do(self, place: int, before: Sequence[Answer]) -> Answer | None:
        """The answer of a step that needs another step, if that step did not succeed. None: all needs are done."""
        for need in (before[each] for each in self.after[place]):
            if need.error is not None:
                return Answer(error=NotBegunError("a step that it needs did not end"))
            if isinstance(need.value, Outcome) and need.value.status != "done":
                return Answer(Outcome("blocked", error=need.value.cause))
        return None

    def _ended_too_often(self, place: int) -> Answer | None:
        """Note that a step begins. Returns a failure if its job was ended too often without progress."""
        kept = Store(self.config.home).partial(self.jobs[place].key) / CHECKPOINT
        checkpoint, times = _modified(kept), 1
        with contextlib.suppress(FileNotFoundError):
            before = json.loads(self._file(place, "begun").read_text(encoding="utf-8"))
            times = before["times"] + 1 if before["checkpoint"] == checkpoint else 1
        if times > ENDS:
            nodes = ", ".join(self.nodes())
            return Answer(Outcome("failed", error=f"its job was ended {ENDS} times without progress, on {nodes}"))
        write_atomically(self._file(place, "begun"), json.dumps({"times": times, "checkpoint": checkpoint}))
        return None


def _modified(path: Path) -> int | None:
    """When a file was last written to, in nanoseconds. None: it does not exist."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None
