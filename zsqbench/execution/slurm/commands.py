"""The commands of Slurm, with the options of the user.

`squeue` gives the states of jobs. It works without accounting, and it knows jobs that Slurm has requeued.
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
"""Default time limit of a job in minutes. A step that takes longer resumes in the next job."""
SIGNAL_SECONDS = 30
"""Slurm warns a job so long before its time limit."""
TIMEOUTS = 10**6
"""How often submitit may requeue a job. The limit is high, because a group counts the ends of its job itself."""
COMMAND_SECONDS = 60.0
"""Time limit of a command of Slurm, in seconds."""

ALIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD"}
    | {"REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
"""States of a job that may still run steps."""
MAY_COME_BACK = frozenset({"NODE_FAIL", "PREEMPTED"})
"""States of a job that Slurm may requeue."""
OURS = frozenset(
    {"array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "signal"}
    | {"test-only", "wait", "wrap"}
)
"""Options of sbatch that the engine sets. A group of steps is one task on one node."""


@dataclass(frozen=True)
class State:
    """The state of a job in Slurm."""

    name: str
    """A word of Slurm, such as PENDING. UNKNOWN: Slurm does not know the job any more."""
    reason: str = ""
    node: str = ""

    def __str__(self) -> str:
        """The reason of the state, for people."""
        return self.name if self.reason in {"", "None"} else f"{self.name}, {self.reason}"


class JobQueue(Protocol):
    """The system that runs jobs. Tests replace Slurm by this machine."""

    def submitter(self, folder: Path, name: str, exclude: Sequence[str]) -> "submitit.Executor":
        """The submitter for jobs with a name, a folder for their files, and excluded nodes."""

    def states(self, name: str) -> "Mapping[str, State]":
        """The known states of jobs with a name, by id. Raises ZSQBenchError without an answer."""

    def nodes(self) -> Collection[str]:
        """The names of all nodes that may run jobs. Raises ZSQBenchError without an answer."""

    def cancel(self, name: str) -> None:
        """End jobs with a name. Running jobs end at once. Raises ZSQBenchError without an answer."""


@dataclass(frozen=True)
class SlurmQueue:
    """The commands of Slurm, with the options of the user."""

    options: Mapping[str, str]
    threads: int

    def check(self) -> None:
        """Raise ZSQBenchError if there is no Slurm, or if it refuses jobs with these options."""
        if importlib.util.find_spec("submitit") is None:
            raise ZSQBenchError(f"the engine slurm needs submitit, which is not installed: {INSTALL}")
        if taken := sorted(OURS & set(self.options)):
            raise ZSQBenchError(f"--slurm-{taken[0]}: zsqbench sets this itself, because a job is one task on one node")
        if shutil.which("sbatch") is None:
            raise ZSQBenchError("the engine slurm needs sbatch, which is not here; run on a machine of the cluster")
        asked = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in self._asked.items()]
        try:
            _run(["sbatch", "--test-only", *asked, "--wrap=true"])
        except ZSQBenchError as error:
            given = " ".join(f"--slurm-{name} {value}" for name, value in self.options.items())
            raise ZSQBenchError(f"Slurm does not take jobs{f' with {given}' if given else ''}: {error}") from error

    def submitter(self, folder: Path, name: str, exclude: Sequence[str]) -> "submitit.Executor":
        """The submitter of jobs to Slurm."""
        from submitit import SlurmExecutor as Submitter

        submitter = Submitter(folder, max_num_timeout=TIMEOUTS)
        values: dict[str, str | bool] = {name: value == "true" or value for name, value in self._asked.items()}
        options = {name.replace("-", "_"): value for name, value in values.items()}  # the names of submitit
        if exclude:
            options["exclude"] = ",".join([*filter(None, [self.options.get("exclude")]), *exclude])
        submitter.update_parameters(
            job_name=name, time=MINUTES, signal_delay_s=SIGNAL_SECONDS, additional_parameters=options
        )
        return submitter

    def states(self, name: str) -> "dict[str, State]":
        """The states from squeue, which knows a job for some minutes after its end."""
        said = _run(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A|%T|%r|%N"])
        fields = (line.split("|") for line in said.splitlines())
        return {job: State(state, reason, node) for job, state, reason, node in fields}

    def nodes(self) -> set[str]:
        """The nodes of the partitions and lists that the user gave, or all nodes."""
        names = {"partition": "--partition", "nodelist": "--nodes"}
        asked = [f"{names[option]}={value}" for option, value in self.options.items() if option in names]
        return set(_run(["sinfo", "--noheader", "--Node", "--format=%N", *asked]).split())

    def cancel(self, name: str) -> None:
        """End jobs with scancel. Slurm would let steps run for half a minute, so they are killed first."""
        _run(["scancel", "--signal=KILL", "--state=RUNNING", f"--name={name}"])
        _run(["scancel", f"--name={name}"])

    @property
    def _asked(self) -> dict[str, str]:
        return {"cpus-per-task": str(self.threads), "time": str(MINUTES), **self.options}


def said_by(error: Exception) -> str:
    """Why a command of Slurm failed, without the other output of the command and of submitit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition(mark)[2] for mark in ("error: ", "fatal: ", "sbatch: ") for line in lines if mark in line]
    return told[0] if told else one_line(error)


def _run(command: Sequence[str]) -> str:
    """The output of a command of Slurm. Raises ZSQBenchError with its message if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZSQBenchError(f"{command[0]} does not answer: {one_line(error)}") from error
    if done.returncode:
        raise ZSQBenchError(said_by(ZSQBenchError(done.stderr.strip() or f"exit code {done.returncode}")))
    return done.stdout
