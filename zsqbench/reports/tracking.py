"""MLflow as a projection of the result rows: a plugin on the observer hooks, and the repair of what it missed."""

import logging
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.hookspecs import hookimpl
from zsqbench.reports.mlflow_runs import UNRUN, BackgroundStep, Ending, Experiment, identity, one_line, tracking_uri
from zsqbench.reports.results import Result
from zsqbench.store import Store

if TYPE_CHECKING:
    from zsqbench.execution.plan import Plan
    from zsqbench.steps import Outcome, Step
    from zsqbench.suite import Suite

logger = logging.getLogger("zsqbench")

PATIENCE = 30.0
"""Seconds that the end of a run waits for MLflow without a sign of progress."""


class Tracker:
    """The plugin: one parent run per invocation, below it one run per cell that is new.

    Cells that are done or failed are logged as they finish. Impossible and excluded cells are logged too, with their
    reason and nothing from the store, but once per experiment, and only beside cells that ran: an invocation in which
    everything is cached never imports MLflow. Interrupted cells are only counted in the parent run; they run next time.
    """

    def __init__(self) -> None:
        self._writer: Writer | None = None

    @hookimpl
    def suite_started(self, suite: "Suite", plan: "Plan") -> None:
        """Get ready; MLflow is not touched before there is something to log."""
        self._writer = Writer(suite.name, plan.store)

    @hookimpl
    def cell_finished(self, result: Result, cached: bool) -> None:
        """Hand the row to the writer."""
        if self._writer is not None and not cached:
            self._writer.put(result)

    @hookimpl
    def step_finished(self, step: "Step", outcome: "Outcome") -> None:
        """Hand on what background steps left: cells do not wait for them, so some may have been logged without."""
        if self._writer is not None and step.type.background and outcome.status == "done":
            self._writer.put_background(BackgroundStep(step.kind, frozenset(need.key for need in step.needs)))

    @hookimpl
    def suite_finished(self, results: list[Result], table: str | None) -> None:
        """Wait until everything is logged, or MLflow is found not to answer."""
        if self._writer is not None:
            self._writer.finish(Ending(results, None if table is None else Path(table)))
            self._writer = None


plugin = Tracker()
"""What the entry point names."""


def sync(results: Sequence[Result], suite_name: str, store: Store) -> int:
    """Log the rows that MLflow does not hold, under one new parent run, and return how many they were.

    Raises ZSQBenchError where MLflow cannot be written to.
    """
    rows = [result for result in results if result.status != "interrupted"]
    try:
        experiment = Experiment.open(suite_name, store)
        held = experiment.identities()
        missing = [result for result in rows if identity(result) not in held]
        if missing:
            run = experiment.start("sync")
            for result in missing:
                run.log(result)
            run.finish(Ending(missing))
    except Exception as error:
        raise ZSQBenchError(f"cannot log to MLflow at {tracking_uri(store.home)}: {one_line(error)}") from error
    return len(missing)


class Writer(threading.Thread):
    """The one thread that talks to MLflow, since its import and its first use of a database take seconds.

    Whatever goes wrong here is one warning, after which nothing more is logged: rows and tables do not depend on it.
    A daemon, so that a server that does not answer cannot keep the process alive.
    """

    def __init__(self, suite_name: str, store: Store) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._suite_name = suite_name
        self._store = store
        self._queue: queue.SimpleQueue[Result | BackgroundStep | Ending] = queue.SimpleQueue()
        self._progress = 0
        self._abandoned = False

    def put(self, result: Result) -> None:
        """Log a row, soon. Returns at once."""
        if result.status == "interrupted":
            return
        self._queue.put(result)
        if result.status not in UNRUN and self.ident is None:
            self.start()

    def put_background(self, news: BackgroundStep) -> None:
        """Log what a background step left to the cells that were logged without, soon. Returns at once."""
        self._queue.put(news)

    def finish(self, ending: Ending) -> None:
        """Wait for what is in the queue, for as long as it gets shorter."""
        if self.ident is None:
            return
        self._queue.put(ending)
        seen = -1
        while self.is_alive() and seen != self._progress:
            seen = self._progress
            self.join(PATIENCE)
        if self.is_alive():
            self._give_up(f"no answer for {PATIENCE:.0f} s")

    def run(self) -> None:
        """The thread's main function."""
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - MLflow, its database and its server fail in ways of their own
            self._give_up(one_line(error))

    def _write(self) -> None:
        experiment = Experiment.open(self._suite_name, self._store)
        run = experiment.start("run")
        held: set[str] | None = None
        while not isinstance(item := self._queue.get(), Ending) and not self._abandoned:
            if isinstance(item, BackgroundStep):
                run.log_background(item)
            else:
                if item.status in UNRUN and held is None:
                    held = experiment.identities()
                if item.status not in UNRUN or identity(item) not in (held or ()):
                    run.log(item)
            self._progress += 1
        if isinstance(item, Ending):
            run.finish(item)

    def _give_up(self, why: str) -> None:
        if not self._abandoned:
            self._abandoned = True
            logger.warning(
                "MLflow logging stopped (%s); results are not affected, `zsqbench mlflow sync %s` logs what is missing",
                why,
                self._suite_name,
            )
