"""The engine `slurm`: groups of steps are jobs of a Slurm whose nodes see one home folder.

submitit starts and requeues jobs. Each job leaves the answer to every step of its group as a file in the home folder,
so a step is done as soon as its answer is there, and a job that Slurm starts anew goes on with the step that it was at.
`squeue` says what became of jobs: it does so without accounting, too, and knows of jobs that Slurm has put back.
"""

import base64
import contextlib
import functools
import importlib.util
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field, PrivateAttr

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution.nodes import APPEAR_SECONDS, Conditions, Limits, NodeFuture, end_workers
from zsqbench.execution.processes import PATIENCE, Answer, Call, WorkerDiedError
from zsqbench.execution.reporter import CHECKPOINT
from zsqbench.execution.session import WorkerConfig
from zsqbench.hookspecs import hookimpl
from zsqbench.leases import Leases
from zsqbench.leftovers import remove
from zsqbench.methods import Engine
from zsqbench.methods.engine import GroupExecutor, NodeUnfitError, NotBegunError
from zsqbench.steps import Outcome
from zsqbench.store import Store, write_atomically

if TYPE_CHECKING:
    import submitit

log = logging.getLogger("zsqbench")

INSTALL = "pip install 'zsqbench[slurm]', or pip install '.[slurm]' in a checkout"
LEASE = "slurm-"
"""The names of the leases of executors, and of their jobs, begin so."""
FOLDER = "slurm"
"""The folder of the home that jobs have their files in."""
JOBS = 32
"""Jobs that are in Slurm's queue at the same time, unless another number is asked for."""
MINUTES = 60
"""Time limit of a job in minutes, unless another is asked for. A step that takes longer goes on in the next job."""
SIGNAL_SECONDS = 30
"""Slurm warns a job so long before its time limit."""
TIMEOUTS = 10**6
"""How often submitit may requeue a job; the end of a step that never comes further is told by `ENDS`."""
ENDS = 5
"""A step fails whose job was ended so often without a new checkpoint, by whatever ended it."""
POLL_SECONDS = 1.0
"""Time between two looks at the answers of jobs."""
STATE_SECONDS = 5.0
"""Time between two questions to Slurm."""
REQUEUE_SECONDS = 30.0
"""Slurm may put a job back so long after its node was lost."""
WAIT_SECONDS = 60.0
"""After so long it is said that all jobs wait in Slurm's queue, and why."""
SUBMISSIONS = 5
"""A job that Slurm does not take is offered so often while no other job of the run is there, which could end."""
COMMAND_SECONDS = 60.0
"""Time that a command of Slurm may take."""

ALIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD"}
    | {"REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
"""States of a job that may still do something."""
MAY_COME_BACK = frozenset({"NODE_FAIL", "PREEMPTED"})
"""States of a job that Slurm may put back."""
OURS = frozenset(
    {"array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "signal"}
    | {"test-only", "wait", "wrap"}
)
"""Options of sbatch that the engine sets: a group of steps is one task, on one node."""


class Slurm(Engine):
    """Jobs of a Slurm, each with several steps. The run has to be where `sbatch` is."""

    name: ClassVar[str] = "slurm"

    slurm: dict[str, str] = Field({}, description="options of sbatch, such as partition; a flag has the value true")
    _config: WorkerConfig | None = PrivateAttr(None)
    _executor: "SlurmExecutor | None" = PrivateAttr(None)

    def check(self, config: WorkerConfig) -> None:
        """Look whether Slurm takes such jobs. Raises ZSQBenchError elsewise."""
        self._config = config
        self._queue.check()

    def slots(self) -> int:
        """Jobs that are in Slurm's queue at the same time: as many as asked for, else 32."""
        return self.workers or JOBS

    def start(self) -> Executor:
        """The executor, which ends its jobs when it is shut down."""
        assert self._config is not None  # noqa: S101 - `check` comes first
        limits = Limits(self.threads, self.step_timeout, self.memory)
        self._executor = SlurmExecutor(self._config, limits, self._queue)
        return self._executor

    def leave_out(self, node: str) -> bool:
        """Exclude a node from further jobs, if the partition has others."""
        return self._executor is not None and self._executor.leave_out(node)

    @property
    def _queue(self) -> "SlurmQueue":
        return SlurmQueue(self.slurm, self.threads)


class JobQueue(Protocol):
    """The system that jobs are handed to. Tests put this machine in the place of Slurm."""

    def submitter(self, folder: Path, name: str, exclude: Sequence[str]) -> "submitit.Executor":
        """What submits jobs of a name, whose files are in a folder, to all nodes but some."""

    def states(self, name: str) -> "Mapping[str, State]":
        """The states of jobs of a name, by id, as far as they are known. Raises ZSQBenchError without an answer."""

    def nodes(self) -> Collection[str]:
        """The names of all nodes that jobs may be on. Raises ZSQBenchError without an answer."""

    def cancel(self, name: str) -> None:
        """End jobs of a name, those that run at once. Raises ZSQBenchError without an answer."""


@dataclass(frozen=True)
class SlurmQueue:
    """The commands of a Slurm, with the options that were asked for."""

    options: Mapping[str, str]
    threads: int

    def check(self) -> None:
        """Raise ZSQBenchError where there is no Slurm, or it does not take jobs with these options."""
        if importlib.util.find_spec("submitit") is None:
            raise ZSQBenchError(f"the engine slurm needs submitit, which is not installed: {INSTALL}")
        if taken := sorted(OURS & set(self.options)):
            raise ZSQBenchError(f"--slurm-{taken[0]}: zsqbench sets this itself, for a job is one task on one node")
        if shutil.which("sbatch") is None:
            raise ZSQBenchError("the engine slurm needs sbatch, which is not here; run on a machine of the cluster")
        asked = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in self._asked.items()]
        try:
            _run(["sbatch", "--test-only", *asked, "--wrap=true"])
        except ZSQBenchError as error:
            given = " ".join(f"--slurm-{name} {value}" for name, value in self.options.items())
            raise ZSQBenchError(f"Slurm does not take jobs{f' with {given}' if given else ''}: {error}") from error

    def submitter(self, folder: Path, name: str, exclude: Sequence[str]) -> "submitit.Executor":
        """What submits jobs to Slurm."""
        from submitit import SlurmExecutor as Submitter

        submitter = Submitter(folder, max_num_timeout=TIMEOUTS)
        values: dict[str, str | bool] = {name: value == "true" or value for name, value in self._asked.items()}
        options = {name.replace("-", "_"): value for name, value in values.items()}  # as submitit has its own
        if exclude:
            options["exclude"] = ",".join([*filter(None, [self.options.get("exclude")]), *exclude])
        submitter.update_parameters(
            job_name=name, time=MINUTES, signal_delay_s=SIGNAL_SECONDS, additional_parameters=options
        )
        return submitter

    def states(self, name: str) -> "dict[str, State]":
        """By squeue, which knows of a job for some minutes after its end."""
        said = _run(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A|%T|%r|%N"])
        fields = (line.split("|") for line in said.splitlines())
        return {job: State(state, reason, node) for job, state, reason, node in fields}

    def nodes(self) -> set[str]:
        """Those of the partitions and lists that were asked for, or all."""
        names = {"partition": "--partition", "nodelist": "--nodes"}
        asked = [f"{names[option]}={value}" for option, value in self.options.items() if option in names]
        return set(_run(["sinfo", "--noheader", "--Node", "--format=%N", *asked]).split())

    def cancel(self, name: str) -> None:
        """By scancel. Slurm itself would let steps go on for half a minute, so they are killed first."""
        _run(["scancel", "--signal=KILL", "--state=RUNNING", f"--name={name}"])
        _run(["scancel", f"--name={name}"])

    @property
    def _asked(self) -> dict[str, str]:
        return {"cpus-per-task": str(self.threads), "time": str(MINUTES), **self.options}


@dataclass(frozen=True)
class Group:
    """The function of a job: steps to be done one after the other, each of which leaves its answer as a file."""

    folder: Path
    """Where the files are, below the home folder."""
    conditions: Conditions
    calls: tuple[Call, ...]
    after: tuple[tuple[int, ...], ...]
    """For each call, those before it that have to end well first."""
    checkpoints: tuple[Path, ...]
    """Where each step keeps its checkpoint."""

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
            for place in range(len(self.calls)):
                answers.append(self._answered(place, answers))
        finally:
            end_workers()

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Called by submitit where Slurm is about to end the job: it is put back, and goes on by its files."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def answer(self, place: int) -> Answer | None:
        """The answer to a call, if it is there."""
        try:
            text = self._file(place, "answer").read_bytes()
        except FileNotFoundError:
            return None
        answer: Answer = pickle.loads(base64.b64decode(text))  # noqa: S301 - a job of this run wrote it
        return answer

    def begun(self, place: int) -> bool:
        """True if a call was begun."""
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
        """The answer to a call, which is made unless it was before."""
        there = self.answer(place)
        if there is not None:
            return there
        answer = self._not_to_do(place, before) or self._ended_too_often(place)
        if answer is None:
            answer = self._call(self.calls[place])
        try:
            content = pickle.dumps(answer)
        except Exception as error:  # noqa: BLE001 - what cannot be pickled
            content = pickle.dumps(Answer(error=RuntimeError(one_line(error))))
        write_atomically(self._file(place, "answer"), base64.b64encode(content).decode())
        return answer

    def _call(self, call: Call) -> Answer:
        """Make a call. Lets SystemExit through, by which submitit ends a job that it has put back."""
        try:
            return Answer(self.conditions.call(call.fn, *call.args, **call.kwargs))
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
        checkpoint, times = _modified(self.checkpoints[place]), 1
        with contextlib.suppress(FileNotFoundError):
            before = json.loads(self._file(place, "begun").read_text(encoding="utf-8"))
            times = before["times"] + 1 if before["checkpoint"] == checkpoint else 1
        if times > ENDS:
            nodes = ", ".join(self.nodes())
            return Answer(Outcome("failed", error=f"its job was ended {ENDS} times before it came further, on {nodes}"))
        write_atomically(self._file(place, "begun"), json.dumps({"times": times, "checkpoint": checkpoint}))
        return None


@dataclass(frozen=True)
class State:
    """What Slurm says of a job."""

    name: str
    """Such as PENDING; UNKNOWN where Slurm knows it no longer."""
    reason: str = ""
    node: str = ""

    def __str__(self) -> str:
        """For people."""
        return self.name if self.reason in {"", "None"} else f"{self.name}, {self.reason}"


@dataclass
class Batch:
    """A job of the executor: a group of steps, with the future of each."""

    group: Group
    futures: list[NodeFuture]
    offered: int = 0
    """How often Slurm did not take it."""
    job: "submitit.Job[None] | None" = None
    """None until Slurm has taken it."""
    starts: int = 0
    """How often it was started, as far as was told."""
    ended: float | None = None
    """When its end was first seen."""

    @property
    def open(self) -> list[int]:
        """The places of steps without an answer."""
        return [place for place, future in enumerate(self.futures) if not future.done()]


class SlurmExecutor(GroupExecutor):
    """Starts groups of steps as jobs, and watches the files that they write and what Slurm says of them."""

    replaces_workers = True
    """Says to the run loop that a dead worker is no reason to start the executor anew."""

    def __init__(self, config: WorkerConfig, limits: Limits, queue: JobQueue) -> None:
        """Begin to watch. Jobs that a killed run has left at this home are ended."""
        self._queue = queue
        self._leases = Leases(config.home)
        self._store = Store(config.home)
        self._end_orphans()
        self.name = f"{LEASE}{uuid.uuid4().hex[:8]}"
        """The name of its jobs."""
        self._leases.take(self.name)
        self._folder = config.home / FOLDER / self.name
        self._conditions = Conditions.of(limits, config)
        self._excluded: list[str] = []
        self._waiting: list[Batch] = []
        """Those that Slurm has not taken yet."""
        self._batches: list[Batch] = []
        """Those that it has."""
        self._told: set[str] = set()
        self._logs_matter = False
        """True once a job ended otherwise than by its own end."""
        self._waits_since = time.monotonic()
        """When a job was last seen that does not wait."""
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NodeFuture:
        """A group of one step."""
        return self.submit_group(functools.partial(fn, **kwargs) if kwargs else fn, [args], [()])[0]

    def submit_group(
        self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]], after: Sequence[Sequence[int]]
    ) -> list[NodeFuture]:
        """Start a job as soon as Slurm takes it; the last argument of each call is the job of a step."""
        group = Group(
            self._folder / f"group-{uuid.uuid4().hex[:8]}",
            self._conditions,
            tuple(Call(fn, args, {}) for args in calls),
            tuple(map(tuple, after)),
            tuple(self._store.partial(args[-1].key) / CHECKPOINT for args in calls),
        )
        batch = Batch(group, [NodeFuture() for _ in calls])
        self._waiting.append(batch)
        return batch.futures

    def leave_out(self, node: str) -> bool:
        """Exclude a node from further jobs. False where it would be the last one, and nothing changes then."""
        try:
            others = set(self._queue.nodes()) - {node, *self._excluded}
        except ZSQBenchError:
            others = {"unknown"}  # Slurm says later if there is none
        if others:
            self._excluded.append(node)
        return bool(others)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the watching; with `cancel_futures`, or without waiting, end all jobs in the middle of what they do."""
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
                self._folder.parent.rmdir()  # unless others have theirs in it
        self._leases.close()

    def _end_orphans(self) -> None:
        """End the jobs of runs that were killed, and remove what is left of ended ones."""
        at_work = self._leases.alive(LEASE)
        for folder in self._store.home.glob(f"{FOLDER}/{LEASE}*"):
            if folder.name not in at_work:
                self._end(folder.name)
                with contextlib.suppress(OSError):
                    remove(folder)

    def _end(self, name: str) -> None:
        """End the jobs of a name, and wait for that a while."""
        try:
            states = self._queue.states(name)
            until = time.monotonic() + PATIENCE
            while any(state.name in ALIVE for state in states.values()) and time.monotonic() < until:
                self._queue.cancel(name)
                time.sleep(0.2)
                states = self._queue.states(name)
        except ZSQBenchError as error:
            log.warning("jobs %s may go on: %s; `scancel --name=%s` ends them", name, error, name)

    def _watch(self) -> None:
        """The thread's work: nothing that it meets ends it."""
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
                self._tell(f"the jobs of Slurm cannot be watched, which is tried again: {one_line(error)}")
            self._batches = [batch for batch in self._batches if batch.open]

    def _offer(self) -> None:
        """Start jobs for groups that wait for one, as far as Slurm takes them."""
        while self._waiting:
            batch = self._waiting[0]
            batch.group.folder.mkdir(parents=True, exist_ok=True)
            try:
                batch.job = self._queue.submitter(self._folder, self.name, self._excluded).submit(batch.group)
            except Exception as error:  # noqa: BLE001 - submitit raises several kinds
                self._refused(batch, _said(error))
                return
            self._batches.append(self._waiting.pop(0))

    def _refused(self, batch: Batch, why: str) -> None:
        """Wait for the end of another job, after which Slurm may take one more; fail where there is none."""
        self._closing.wait(STATE_SECONDS)
        batch.offered += 1
        if self._batches or batch.offered < SUBMISSIONS:
            self._tell(f"Slurm takes no further job for now: {why}")
            return
        self._waiting.remove(batch)
        for future in batch.futures:
            future.set_exception(RuntimeError(f"Slurm does not take its job: {why}"))

    def _read(self, batch: Batch) -> None:
        """Give futures what the job has written."""
        nodes = batch.group.nodes()
        if len(nodes) > batch.starts:
            if batch.starts and batch.job is not None:
                log.warning(
                    "job %s goes on on node %s, after Slurm ended it on node %s", batch.job.job_id, *nodes[-1:-3:-1]
                )
            batch.starts = len(nodes)
        for place in batch.open:
            future = batch.futures[place]
            if not future.running() and batch.group.begun(place):
                future.set_running_or_notify_cancel()
            answer = batch.group.answer(place)
            if answer is None:
                break  # they are done in order
            future.node = nodes[-1] if nodes else None
            if answer.error is None:
                future.set_result(answer.value)
            else:
                future.set_exception(answer.error)
        if fault := batch.group.fault():
            self._fail(batch, NodeUnfitError(f"it {fault}"), nodes[-1])

    def _judge(self) -> None:
        """Ask what became of the jobs, and end the waiting for answers of those that have ended without."""
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
                self._read(batch)  # what was written last
                self._conclude(batch, state)
        pending = [state for _, state in states if state.name == "PENDING"]
        if len(pending) < len(states):
            self._waits_since = now
        elif now - self._waits_since >= WAIT_SECONDS:
            reasons = ", ".join(dict.fromkeys(state.reason for state in pending))
            self._tell(f"all jobs ({len(pending)}) wait in Slurm's queue: {reasons}")

    def _conclude(self, batch: Batch, state: State) -> None:
        """Say of each step without an answer why it has none."""
        places = batch.open
        if not places or batch.job is None:
            return
        nodes = batch.group.nodes()
        ended, log_file = f"job {batch.job.job_id} ended ({state})", Path(batch.job.paths.stderr)
        self._logs_matter = True
        if not nodes and not state.name.startswith("CANCELLED"):
            why = _last_line(log_file) or f"it may not see the home folder {self._store.home}"
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
        """Warn, once."""
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)


def _modified(path: Path) -> int | None:
    """When a file was last written to, in nanoseconds; None where it is not there."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def _last_line(path: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _said(error: Exception) -> str:
    """The reason why a command of Slurm failed, without the rest of what it and submitit say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition(mark)[2] for mark in ("error: ", "fatal: ", "sbatch: ") for line in lines if mark in line]
    return told[0] if told else one_line(error)


def _run(command: Sequence[str]) -> str:
    """What a command of Slurm prints. Raises ZSQBenchError with what it says where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZSQBenchError(f"{command[0]} does not answer: {one_line(error)}") from error
    if done.returncode:
        raise ZSQBenchError(_said(ZSQBenchError(done.stderr.strip() or f"exit code {done.returncode}")))
    return done.stdout


@hookimpl
def register_engines() -> list[type[Engine]]:
    """Slurm; submitit need not be installed until it is used."""
    return [Slurm]
