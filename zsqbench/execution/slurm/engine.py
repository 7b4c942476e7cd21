"""The engine `slurm`, as the command line and the plan know it."""

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
"""Jobs that are in Slurm's queue at the same time, unless another number is asked for."""


class Slurm(Engine):
    """Jobs of a Slurm, each with several steps. The run has to be where `sbatch` is."""

    name: ClassVar[str] = "slurm"

    slurm: dict[str, str] = Field({}, description="options of sbatch, such as partition; a flag has the value true")
    _config: WorkerConfig | None = PrivateAttr(None)
    _executor: SlurmExecutor | None = PrivateAttr(None)

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


@hookimpl
def register_engines() -> list[type[Engine]]:
    """Slurm; submitit need not be installed until it is used."""
    return [Slurm]
