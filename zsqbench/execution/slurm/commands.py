"""Slurm's commands, with the options that were asked for.

`squeue` says what became of jobs: it does so without accounting, too, and knows of jobs that Slurm has put back.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zsqbench.errors import ZSQBenchError, one_line

if TYPE_CHECKING:
    import submitit

INSTALL = "pip install 'zsqbench[slurm]', or pip install '.[slurm]' in a checkout"
MINUTES = 60
"""Time limit of a job in minutes, unless another is asked for. A step that takes longer goes on in the next job."""
SIGNAL_SECONDS = 30
"""Slurm warns a job so long before its time limit."""
TIMEOUTS = 10**6
"""How often submitit may requeue a job: a group counts itself how often its job was ended."""
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


def said_by(error: Exception) -> str:
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
        raise ZSQBenchError(said_by(ZSQBenchError(done.stderr.strip() or f"exit code {done.returncode}")))
    return done.stdout
