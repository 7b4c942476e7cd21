"""The base of all engines."""

from abc import ABC, abstractmethod
from concurrent.futures import BrokenExecutor, Executor
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from zsqbench.methods.base import Kind, Method

if TYPE_CHECKING:
    from zsqbench.execution.session import WorkerConfig


class NodeLostError(BrokenExecutor):
    """A future of an engine raises this where its machine was lost, of which the step may be innocent."""


class Engine(Method, ABC):
    """Where steps run: anything that gives a `concurrent.futures.Executor`."""

    kind: ClassVar[Kind] = "engine"
    seeded: ClassVar[bool] = False

    workers: int | None = Field(None, ge=0, description="steps that run at the same time")
    threads: int = Field(1, gt=0, description="CPU threads that one step takes")
    step_timeout: float | None = Field(None, gt=0, description="seconds that one step may take")
    memory: int | None = Field(None, gt=0, description="bytes of host memory that one worker may take")

    def check(self, config: "WorkerConfig") -> None:
        """Look, before the first step of a run, whether steps can run. Raises ZSQBenchError where they cannot.

        `config` says which folders and plugin files all workers have to see.
        """

    @abstractmethod
    def slots(self) -> int:
        """How many steps to hand to the executor at the same time."""

    @abstractmethod
    def start(self) -> Executor:
        """Start the executor. Workers build their own plugin manager; what is submitted is plain data."""
