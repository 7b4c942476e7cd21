"""Groups of steps become jobs. submitit starts them, and their files and Slurm give their outcomes."""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution.nodes import APPEAR_SECONDS, Conditions, Limits, NodeFuture
from zsqbench.execution.processes import PATIENCE, WorkerDiedError
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm.commands import ALIVE, MAY_COME_BACK, JobQueue, State, said_by
from zsqbench.execution.slurm.group import Group
from zsqbench.leases import Leases
from zsqbench.leftovers import remove
from zsqbench.methods.engine import GroupExecutor, NodeUnfitError, NotBegunError
from zsqbench.steps import Job, Outcome

if TYPE_CHECKING:
    import submitit

log = logging.getLogger("zsqbench")

LEASE = "slurm-"
"""The prefix of the names of leases of executors, and of their jobs."""
FOLDER = "slurm"
"""The folder of the home for the files of jobs."""
POLL_SECONDS = 1.0
"""Seconds between two looks at the answers of jobs."""
STATE_SECONDS = 5.0
"""Seconds between two requests to Slurm."""
REQUEUE_SECONDS = 30.0
"""Slurm may requeue a job up to so many seconds after its node was lost."""
WAIT_SECONDS = 60.0
"""After so many seconds a warning says that all jobs wait in Slurm's queue, and why."""
SUBMISSIONS = 5
"""So many attempts to submit a job that Slurm refuses, while no other job of the run exists that could end."""


@dataclass
class Batch:
    """A job of the executor: a group of steps, with the future of each."""

    group: Group
    futures: list[NodeFuture]
    offered: int = 0
    """How often Slurm refused it."""
    job: "submitit.Job[None] | None" = None
    """None: Slurm has not accepted it yet."""
    starts: int = 0
    """How often it was started, as far as reported."""
    ended: float | None = None
    """The time at which its end was first seen."""

    @property
    def open(self) -> list[int]:
        """The indices of steps without an answer."""
        return [place for place, future in enumerate(self.futures) if not future.done()]


class SlurmExecutor(GroupExecutor):
    """Starts groups of steps as jobs, and watches the files that they write and their states in Slurm."""

    replaces_workers = True
    """Tells the run loop not to restart the executor when a worker dies."""

    def __init__(self, config: WorkerConfig, limits: Limits, queue: JobQueue) -> None:
        """Begin to watch. Jobs that a killed run left at this home are ended."""
        self._queue = queue
        self._home = config.home
        self._leases = Leases(config.home)
        self._end_orphans()
        self.name = f"{LEASE}{uuid.uuid4().hex[:8]}"
        """The name of its jobs."""
        self._leases.take(self.name)
        self._folder = config.home / FOLDER / self.name
        self._conditions = Conditions.of(limits, config)
        self._excluded: list[str] = []
        self._waiting: list[Batch] = []
        """Groups that Slurm has not accepted yet."""
        self._batches: list[Batch] = []
        """Groups that Slurm has accepted."""
        self._told: set[str] = set()
        self._logs_matter = False
        """True after a job ended in another way than by finishing."""
        self._waits_since = time.monotonic()
        """The time at which a job that does not wait was last seen."""
        self._next_offer = 0.0
        """The time at which a refused job is submitted again."""
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    def submit_group(
        self,
        fn: Callable[[WorkerConfig, Job], Outcome],
        config: WorkerConfig,
        jobs: Sequence[Job],
        after: Sequence[Sequence[int]],
    ) -> list[NodeFuture]:
        """Start a job as soon as Slurm accepts it."""
        folder = self._folder / f"group-{uuid.uuid4().hex[:8]}"
        group = Group(folder, self._conditions, fn, config, tuple(jobs), tuple(map(tuple, after)))
        batch = Batch(group, [NodeFuture() for _ in jobs])
        self._waiting.append(batch)
        return batch.futures

    def leave_out(self, node: str) -> bool:
        """Exclude a node from further jobs. False: it is the last node, and nothing changes."""
        try:
            others = set(self._queue.nodes()) - {node, *self._excluded}
        except ZSQBenchError:
            others = {"unknown"}  # Slurm will say later if there is no other node
        if others:
            self._excluded.append(node)
        return bool(others)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the watching. With `cancel_futures`, or without waiting, interrupt all jobs."""
        if self._closing.is_set():
            return
        if wait and not cancel_futures:
            wait_for([future for batch in (*self._waiting, *self._batches) for future in batch.futures])
        self._closing.set()
        self._watcher.join()
        self._end(self.name)
        if not self._logs_matter:
            with contextlib.suppress(OSError):
                remove(self._folder)
                self._folder.parent.rmdir()  # fails if other runs have folders in it
        self._leases.close()

    def _end_orphans(self) -> None:
        """End the jobs of killed runs, and remove the files of ended runs."""
        at_work = self._leases.alive(LEASE)
        for folder in self._home.glob(f"{FOLDER}/{LEASE}*"):
            if folder.name not in at_work:
                self._end(folder.name)
                with contextlib.suppress(OSError):
                    remove(folder)

    def _end(self, name: str) -> None:
        """End the jobs with a name, and wait a while for their end."""
        try:
            states = self._queue.states(name)
            until = time.monotonic() + PATIENCE
            while any(state.name in ALIVE for state in states.values()) and time.monotonic() < until:
                self._queue.cancel(name)
                time.sleep(0.2)
                states = self._queue.states(name)
        except ZSQBenchError as error:
            log.warning("jobs %s may still run: %s; `scancel --name=%s` ends them", name, error, name)

    def _watch(self) -> None:
        """The work of the thread. No error ends it."""
        asked = 0.0
        while not self._closing.wait(POLL_SECONDS):
            try:
                self._offer()
                for batch in self._batches:
                    self._read(batch)
                if self._batches and time.monotonic() - asked >= STATE_SECONDS:
                    asked = time.monotonic()
                    self._judge()
            except Exception as error:  # noqa: BLE001 - a file system or Slurm may fail for a while
                self._tell(f"the jobs of Slurm cannot be watched; the run tries again: {one_line(error)}")
            self._batches = [batch for batch in self._batches if batch.open]

    def _offer(self) -> None:
        """Start jobs for waiting groups, as far as Slurm accepts them."""
        while self._waiting and time.monotonic() >= self._next_offer:
            batch = self._waiting[0]
            batch.group.folder.mkdir(parents=True, exist_ok=True)
            try:
                batch.job = self._queue.submitter(self._folder, self.name, self._excluded).submit(batch.group)
            except Exception as error:  # noqa: BLE001 - submitit raises several kinds
                self._refused(batch, said_by(error))
                return
            self._batches.append(self._waiting.pop(0))

    def _refused(self, batch: Batch, why: str) -> None:
        """Wait for the end of another job, because Slurm may then accept one more. Without another job, fail."""
        self._next_offer = time.monotonic() + STATE_SECONDS
        batch.offered += 1
        if self._batches or batch.offered < SUBMISSIONS:
            self._tell(f"Slurm takes no further job for now: {why}")
            return
        self._waiting.remove(batch)
        for future in batch.futures:
            future.set_exception(RuntimeError(f"Slurm does not take its job: {why}"))

    def _read(self, batch: Batch) -> None:
        """Give the answers that the job has written to the futures."""
        nodes = batch.group.nodes()
        if len(nodes) > batch.starts:
            if batch.starts and batch.job is not None:
                log.warning(
                    "job %s continues on node %s, after Slurm ended it on node %s", batch.job.job_id, *nodes[-1:-3:-1]
                )
            batch.starts = len(nodes)
        for place in batch.open:
            future = batch.futures[place]
            if not future.running() and batch.group.begun(place):
                future.set_running_or_notify_cancel()
            answer = batch.group.answer(place)
            if answer is None:
                break  # steps are done in order
            future.node = nodes[-1] if nodes else None
            if answer.error is None:
                future.set_result(answer.value)
            else:
                future.set_exception(answer.error)
        if fault := batch.group.fault():
            self._fail(batch, NodeUnfitError(f"it {fault}"), nodes[-1])

    def _judge(self) -> None:
        """Ask Slurm for the states of the jobs. Stop waiting for jobs that ended without an answer."""
        found = self._queue.states(self.name)
        now = time.monotonic()
        states = [(batch, found.get(batch.job.job_id, State("UNKNOWN"))) for batch in self._batches if batch.job]
        for batch, state in states:
            if state.name in ALIVE:
                batch.ended = None
                continue
            batch.ended = batch.ended or now
            patience = REQUEUE_SECONDS if state.name in MAY_COME_BACK else APPEAR_SECONDS
            if now - batch.ended >= patience:
                self._read(batch)  # read the last answers
                self._conclude(batch, state)
        pending = [state for _, state in states if state.name == "PENDING"]
        if len(pending) < len(states):
            self._waits_since = now
        elif now - self._waits_since >= WAIT_SECONDS:
            reasons = ", ".join(dict.fromkeys(state.reason for state in pending))
            self._tell(f"all jobs ({len(pending)}) wait in Slurm's queue: {reasons}")

    def _conclude(self, batch: Batch, state: State) -> None:
        """Give each step without an answer the reason."""
        places = batch.open
        if not places or batch.job is None:
            return
        nodes = batch.group.nodes()
        ended, log_file = f"job {batch.job.job_id} ended ({state})", Path(batch.job.paths.stderr)
        self._logs_matter = True
        if not nodes and not state.name.startswith("CANCELLED"):
            why = _last_line(log_file) or f"it may not see the home folder {self._home}"
            self._fail(batch, NodeUnfitError(f"{ended} before its first step: {why}"), state.node)
            return
        self._tell(f"{ended}; its log is {log_file}")
        first = next((place for place in places if batch.group.begun(place)), places[0])
        for place in places:
            batch.futures[place].node = nodes[-1] if nodes else None
            error = WorkerDiedError(f"its {ended}") if place == first else NotBegunError(ended)
            batch.futures[place].set_exception(error)

    @staticmethod
    def _fail(batch: Batch, error: Exception, node: str) -> None:
        for place in batch.open:
            batch.futures[place].node = node
            batch.futures[place].set_exception(error)

    def _tell(self, text: str) -> None:
        """Warn once."""
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)


def _last_line(path: Path) -> str:
    """The last line of a log that is not blank. Empty: there is no such line."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
