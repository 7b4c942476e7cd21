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
    """Raised by a future of an engine whose machine was lost, perhaps through no fault of the step."""


class NodeUnfitError(NodeLostError):
    """Raised by a future of an engine whose machine can run no step at all. The step was not begun."""


class NotBegunError(BrokenExecutor):
    """Raised by a future of an engine if the step was not begun because a step that it needs was ended."""


class GroupExecutor(Executor, ABC):
    """An executor that takes several steps at a time and runs them one after the other in one place."""

    @abstractmethod
    def submit_group(
        self,
        fn: "Callable[[WorkerConfig, Job], Outcome]",
        config: "WorkerConfig",
        jobs: "Sequence[Job]",
        after: Sequence[Sequence[int]],
    ) -> "Sequence[Future[Outcome]]":
        """Run these steps with a function. Returns one future for each.

        `after` names for each step the earlier steps, by index, that must end well first.
        """


class Engine(Method, ABC):
    """Place where steps run: anything that gives a `concurrent.futures.Executor`."""

    kind: ClassVar[Kind] = "engine"
    seeded: ClassVar[bool] = False

    workers: int | None = Field(None, ge=0, description="number of steps that run at the same time")
    threads: int = Field(1, gt=0, description="CPU threads that one step takes")
    step_timeout: float | None = Field(None, gt=0, description="seconds that one step may take")
    memory: int | None = Field(None, gt=0, description="bytes of host memory that one worker may take")

    def check(self, config: "WorkerConfig") -> None:
        """Check, before the first step of a run, that steps can run. Raises ZSQBenchError where they cannot.

        `config` names the folders and plugin files that all workers must see.
        """

    @abstractmethod
    def slots(self) -> int:
        """Number of steps, or groups of steps, to hand to the executor at the same time."""

    def leave_out(self, node: str) -> bool:  # noqa: ARG002 - for engines that have nodes
        """Give a node no more steps. Returns False, and changes nothing, where no other node is left."""
        return False

    @abstractmethod
    def start(self) -> Executor:
        """Start the executor. Workers build their own plugin manager; submitted work is plain data."""
