"""Show the progress of a run: bars on a terminal, plain lines elsewhere. This is a plugin on the observer hooks."""

import sys
import time
from typing import TYPE_CHECKING

from zsqbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from zsqbench.execution.plan import Plan
    from zsqbench.reports.results import Result
    from zsqbench.steps import Outcome, Progress, Step
    from zsqbench.suite import Suite

LINE_SECONDS = 10.0
"""At most one plain line about a running step in so many seconds."""


class ProgressDisplay:
    """Writes to stderr, so that stdout only has the table."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._steps = self._finished = self._cached = 0
        self._planned = False
        self._last_line: dict[str, float] = {}
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._overall: TaskID | None = None

    @hookimpl
    def suite_started(self, suite: "Suite", plan: "Plan") -> None:
        """Print the number of steps to do, and their estimated time, if known."""
        from zsqbench.execution.estimates import Estimates
        from zsqbench.execution.timings import Timings

        self._reset()  # one display serves all runs of a process
        self._planned = True
        to_do = plan.to_do([cell for cell in plan.cells if not plan.is_finished(cell)])
        self._steps = len(to_do)
        total = Estimates(Timings(plan.store)).total(to_do.values()) if to_do else None
        about = f", {total}" if total and total.known else ""
        print(f"{suite.name}: {len(plan.cells)} cells, {self._steps} steps to do{about}", file=sys.stderr)
        if self._steps and sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
            self._overall = self._bars.add_task(suite.name, total=self._steps, values="")

    @hookimpl
    def step_progress(self, step: "Step", progress: "Progress") -> None:
        """Show iterations and the last losses of a running step."""
        values = "  ".join([*(f"{name} {value:.4g}" for name, value in progress.values.items()), progress.note]).strip()
        if self._bars is not None:
            if step.key not in self._tasks:
                self._tasks[step.key] = self._bars.add_task(step.label, total=progress.total or None, values="")
            task, total = self._tasks[step.key], progress.total or None
            self._bars.update(task, completed=progress.done, total=total, values=values)
        elif progress.note or time.monotonic() - self._last_line.setdefault(step.key, time.monotonic()) >= LINE_SECONDS:
            self._last_line[step.key] = time.monotonic()
            print(f"  {step.label}: {progress.done} of {progress.total}  {values}", file=sys.stderr)

    @hookimpl
    def step_finished(self, step: "Step", outcome: "Outcome") -> None:
        """One line for each step."""
        self._finished += self._planned  # networks are loaded before there is a plan
        count = f"[{self._finished}/{self._steps}] " if self._planned else ""
        ending = f"{outcome.seconds:.1f} s" if outcome.status == "done" else f"{outcome.status}: {outcome.error}"
        if self._bars is None:
            print(f"{count}{step.label}: {ending}", file=sys.stderr, flush=True)
            return
        if step.key in self._tasks:
            self._bars.remove_task(self._tasks.pop(step.key))
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._finished)
        if outcome.status != "done":
            self._bars.console.print(f"{step.label}: {ending}", markup=False, highlight=False)

    @hookimpl
    def cell_finished(self, result: "Result", cached: bool) -> None:
        """One line for each new result."""
        self._cached += cached
        if cached:
            return
        value, full = result.value, result.float_value
        measured = f"{value:.2f} (float {full:.2f})" if value is not None and full is not None else ""
        text = f"{result.cell}: {measured or f'{result.status}: {result.reason}'}"
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @hookimpl
    def suite_finished(self) -> None:
        """Reset the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._cached:
            print(f"{self._cached} cells were there already", file=sys.stderr)
        self._planned = False


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


plugin = ProgressDisplay()
