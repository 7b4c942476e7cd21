"""The engine `slurm` for the command line and the plan."""

from concurrent.futures import Executor
from typing import ClassVar

from pydantic import Field, PrivateAttr

from zsqbench.execution.nodes import Limits
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm.commands import SlurmQueue
from zsqbench.execution.slurm.executor import SlurmExecutor
from zsqbench.hookspecs import hookimpl
from zsqbench.methods import Engine

JOBS = 32
"""Default number of jobs in Slurm's queue at the same time."""


class Slurm(Engine):
    """Jobs of Slurm, each with several steps. The run must be on a machine with `sbatch`."""

    name: ClassVar[str] = "slurm"

    slurm: dict[str, str] = Field({}, description="options of sbatch, such as partition; a flag has the value true")
    _config: WorkerConfig | None = PrivateAttr(None)
    _executor: SlurmExecutor | None = PrivateAttr(None)

    def check(self, config: WorkerConfig) -> None:
        """Check that Slurm accepts jobs with these options. Raises ZSQBenchError otherwise."""
        self._config = config
        self._queue.check()

    def slots(self) -> int:
        """Number of jobs in Slurm's queue at the same time. Unset: 32."""
        return self.workers or JOBS

    def start(self) -> Executor:
        """The executor. It ends its jobs when it is shut down."""
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


@hookimpl
def register_engines() -> list[type[Engine]]:
    """Slurm. submitit must be installed only when it is used."""
    return [Slurm]
