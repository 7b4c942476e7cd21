"""All hooks: four that register methods, five that observe a run."""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from zsqbench.execution.plan import Plan
    from zsqbench.methods import Engine, Generator, Quantizer, Task
    from zsqbench.reports.results import Result
    from zsqbench.steps import Outcome, Progress, Step
    from zsqbench.suite import Suite

PROJECT = "zsqbench"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of the same name."""


@hookspec
def register_generators() -> "list[type[Generator]]":  # type: ignore[empty-body]
    """Return the generators that this plugin provides.

    Called once in each process that loads plugins (the parent and every worker), so it must be cheap and must not
    import torch; import torch inside `generate`.
    """


@hookspec
def register_quantizers() -> "list[type[Quantizer]]":  # type: ignore[empty-body]
    """Return the quantizers that this plugin provides. Called as `register_generators` is."""


@hookspec
def register_tasks() -> "list[type[Task]]":  # type: ignore[empty-body]
    """Return the tasks that this plugin provides. Called as `register_generators` is."""


@hookspec
def register_engines() -> "list[type[Engine]]":  # type: ignore[empty-body]
    """Return the engines that this plugin provides. Called as `register_generators` is."""


@hookspec
def suite_started(suite: "Suite", plan: "Plan") -> None:
    """Called in the parent process once the plan stands, before the first step of the matrix runs."""


@hookspec
def step_progress(step: "Step", progress: "Progress") -> None:
    """Called in the parent process, a few times a second, while a step runs and has news.

    `progress` holds the iterations done and in all, and the last value of each curve that the method logs.
    """


@hookspec
def step_finished(step: "Step", outcome: "Outcome") -> None:
    """Called in the parent process when a step is done, failed or blocked; not for a step that was cached."""


@hookspec
def cell_finished(suite: "Suite", result: "Result", cached: bool) -> None:
    """Called in the parent process when a cell's row has been written, in the order in which cells finish.

    `cached` is true where every step was already there and the row was, too. MLflow logs the others, and those of
    the former that it does not hold.
    """


@hookspec
def suite_finished(suite: "Suite", results: "list[Result]", table: "str | None", report: "str | None") -> None:
    """Called once in the parent process at the end of a run: done, interrupted, or ended by an error.

    `results` has a row for every cell of the plan, or none where the run ended before all cells had one. `table` is the
    path of the leaderboard that was written, or none, and `report` the folder of its pages, where these were asked for.
    """
