"""The base of all engines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from zsqbench.methods.base import Kind, Method

if TYPE_CHECKING:
    from zsqbench.execution.session import WorkerConfig
    from zsqbench.steps import Job, Outcome


class NodeLostError(BrokenExecutor):
    """A future of an engine raises this where its machine was lost, of which the step may be innocent."""


class NodeUnfitError(NodeLostError):
    """A future of an engine raises this where its machine can run no step at all, and the step was not begun."""


class NotBegunError(BrokenExecutor):
    """A future of an engine raises this where a step was not begun, for one that it needs was ended before."""


class GroupExecutor(Executor, ABC):
    """An executor that takes several steps at a time, to be done one after the other in one place."""

    @abstractmethod
    def submit_group(
        self,
        fn: "Callable[[WorkerConfig, Job], Outcome]",
        config: "WorkerConfig",
        jobs: "Sequence[Job]",
        after: Sequence[Sequence[int]],
    ) -> "Sequence[Future[Outcome]]":
        """Do these steps by a function; one future for each.

        `after` says for each step which of those before it have to end well first, by their places.
        """


class Engine(Method, ABC):
    """Where steps run: anything that gives a `concurrent.futures.Executor`."""

    kind: ClassVar[Kind] = "engine"
    seeded: ClassVar[bool] = False

    workers: int | None = Field(None, ge=0, description="number of steps that run at the same time")
    threads: int = Field(1, gt=0, description="CPU threads that one step takes")
    step_timeout: float | None = Field(None, gt=0, description="seconds that one step may take")
    memory: int | None = Field(None, gt=0, description="bytes of host memory that one worker may take")

    def check(self, config: "WorkerConfig") -> None:
        """Look, before the first step of a run, whether steps can run. Raises ZSQBenchError where they cannot.

        `config` says which folders and plugin files all workers have to see.
        """

    @abstractmethod
    def slots(self) -> int:
        """How many steps, or groups of them, to hand to the executor at the same time."""

    def leave_out(self, node: str) -> bool:  # noqa: ARG002 - for engines that have nodes
        """Give a node no more steps. False where no other is left, and nothing changes then."""
        return False

    @abstractmethod
    def start(self) -> Executor:
        """Start the executor. Workers build their own plugin manager; what is submitted is plain data."""
