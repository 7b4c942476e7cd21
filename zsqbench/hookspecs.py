"""All hooks: four hooks register methods, five hooks observe a run."""

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
    """Called in the parent process when the plan is complete, before the first step of the matrix runs."""


@hookspec
def step_progress(step: "Step", progress: "Progress") -> None:
    """Called in the parent process, a few times a second, while a step runs and has news.

    `progress` holds the number of iterations done, their total, and the last value of each curve that the method logs.
    """


@hookspec
def step_finished(step: "Step", outcome: "Outcome") -> None:
    """Called in the parent process when a step is done, failed or blocked. Not called for a cached step."""


@hookspec
def cell_finished(suite: "Suite", result: "Result", cached: bool) -> None:
    """Called in the parent process when a cell's row has been written, in the order in which cells finish.

    `cached` is true if the row and all its steps were already there. MLflow logs every row that is not cached, and
    each cached row that it lacks.
    """


@hookspec
def suite_finished(suite: "Suite", results: "list[Result]", table: "str | None", report: "str | None") -> None:
    """Called once in the parent process at the end of a run: done, interrupted, or ended by an error.

    `results` has a row for every cell of the plan. It is empty if the run ended before all cells had a row. `table` is
    the path of the leaderboard (None: not written). `report` is the folder of the pages (None: not asked for).
    """
