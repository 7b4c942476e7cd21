"""MLflow as a copy of the result rows: a plugin on the observer hooks, and a repair of missing rows."""

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.hookspecs import hookimpl
from zsqbench.reports.mlflow.database import Database, cause_of, is_damage, load_mlflow, tracking_uri
from zsqbench.reports.mlflow.runs import (
    UNRUN,
    BackgroundStep,
    DeletedExperimentError,
    Ending,
    Experiment,
    Invocation,
    connect,
    identity,
    one_line,
    rename_deleted,
)
from zsqbench.reports.mlflow.turns import Turns
from zsqbench.reports.results import Result
from zsqbench.store import Store

if TYPE_CHECKING:
    from zsqbench.execution.plan import Plan
    from zsqbench.steps import Outcome, Step
    from zsqbench.suite import Suite

logger = logging.getLogger("zsqbench")

PATIENCE = 30.0
"""The end of a run waits for MLflow for at most so many seconds without progress."""


class Tracker:
    """The plugin: one parent run for each invocation that logs data, and below it one run for each logged cell.

    Done and failed cells are logged as they finish. Other cells are logged, too, unless MLflow has them: impossible and
    excluded cells with their reason, and cached cells, because an earlier run may have failed to log them. If MLflow
    has all rows, it is never imported. A database can be read without MLflow; a server is only asked if there is
    something new to log. Interrupted cells are only counted in the parent run, because they run next time.
    """

    def __init__(self) -> None:
        self._writer: Writer | None = None

    @hookimpl
    def suite_started(self, suite: "Suite", plan: "Plan") -> None:
        """Prepare for a run. MLflow is not used before there is something to log."""
        self._writer = Writer(suite.name, plan.store)

    @hookimpl
    def cell_finished(self, result: Result, cached: bool) -> None:
        """Pass the row to the writer."""
        if self._writer is not None:
            self._writer.put(result, cached)

    @hookimpl
    def step_finished(self, step: "Step", outcome: "Outcome") -> None:
        """Pass on results of background steps. Cells do not wait for them, so some were logged without them."""
        if self._writer is not None and step.type.background and outcome.status == "done":
            self._writer.put_background(BackgroundStep(step.kind, frozenset(need.key for need in step.needs)))

    @hookimpl
    def suite_finished(self, results: list[Result], table: str | None, report: str | None) -> None:
        """Wait until everything is logged, or MLflow does not answer."""
        if self._writer is not None:
            paths = (None if path is None else Path(path) for path in (table, report))
            self._writer.finish(Ending(results, *paths))
            self._writer = None


plugin = Tracker()
"""The object of the entry point."""


def sync(results: Sequence[Result], suite_name: str, store: Store) -> int:
    """Log the rows that MLflow does not have, under one new parent run, and return their number.

    Raises ZSQBenchError if MLflow cannot be written to.
    """
    rows = [result for result in results if result.status != "interrupted"]
    with _in_turns(suite_name, store.home) as turns:
        if rows and _database_holds(rows, suite_name, store):
            return 0
        experiment = Experiment.open(suite_name, store, turns)
        held = experiment.identities()
        run = Invocation(experiment, "sync")
        missing = [result for result in rows if identity(result) not in held]
        at_once = experiment.rows_at_once
        batches = (missing[first : first + at_once] for first in range(0, len(missing), at_once))
        logged = [result for batch in batches for result in run.log(*batch)]
        run.finish(Ending(logged))
    return len(logged)


def _database_holds(rows: Sequence[Result], suite_name: str, store: Store) -> bool:
    """True if a database has all rows. This is checked without MLflow, whose import takes seconds."""
    database = Database.of(store.home)
    if database is None:
        return False
    held = {run.row for run in database.logged(suite_name) if run.ended}
    return all(identity(result) in held for result in rows)


def move_aside(suite_name: str, store: Store) -> str:
    """Move a damaged database aside, or rename a deleted experiment, and return a text on it.

    Raises ZSQBenchError if nothing is damaged or deleted.
    """
    database = Database.of(store.home)
    with _in_turns(suite_name, store.home) as turns:
        load_mlflow()
        with turns.take():
            damage = database and database.damage()
            if database and damage:
                return f"{database.path} is damaged ({damage}); it is {database.move_aside().name} now"
            name = rename_deleted(connect(store.home), suite_name)
    if name is None:
        raise ZSQBenchError(
            f"nothing to move aside: {tracking_uri(store.home)} is sound, and its experiment {suite_name} not deleted"
        )
    return f"the deleted experiment {suite_name} is called '{name}' now"


def make_database(home: Path) -> None:
    """Make the database of a home folder, unless it exists. Raises ZSQBenchError if it cannot be made or read."""
    database = Database.of(home)
    if database is not None:
        with _in_turns("SUITE", home) as turns, turns.take():
            database.make()


@contextlib.contextmanager
def _in_turns(suite_name: str, home: Path) -> Iterator[Turns]:
    """The turns of a command. A failure becomes one line that says what to do."""
    turns = Turns.of(home)
    try:
        yield turns
    except Exception as error:
        trouble = Trouble.of(error, suite_name, home)
        text = f"cannot log to MLflow at {tracking_uri(home)}: {trouble.what}"
        raise ZSQBenchError(f"{text}; {trouble.cure}" if trouble.cure else text) from error
    finally:
        turns.leases.close()


@dataclass(frozen=True)
class Trouble:
    """A failure of MLflow in a line, and what to do, if trying again is not enough."""

    what: str
    cure: str | None = None

    @classmethod
    def of(cls, error: Exception, suite_name: str, home: Path) -> "Trouble":
        """Distinguish a damaged database and a deleted experiment from temporary failures."""
        command = f"`zsqbench mlflow sync {suite_name} --move-aside`"
        database = Database.of(home)
        if database is not None and is_damage(error):
            return cls(
                f"{database.path} is damaged: {cause_of(error)}",
                f"{command} moves it to {database.path.name}.damaged-DATE and logs all rows into a new one",
            )
        if isinstance(error, DeletedExperimentError):
            restore = f"mlflow experiments restore --experiment-id {error.experiment_id}"
            return cls(
                str(error),
                f"`MLFLOW_TRACKING_URI='{tracking_uri(home)}' {restore}` restores it, {command} gives it another "
                "name and logs all rows into a new one",
            )
        return cls(one_line(error))


@dataclass(frozen=True)
class Row:
    """A row to be logged. If it is not new, an earlier run may have logged it."""

    result: Result
    new: bool


class Writer(threading.Thread):
    """The only thread that uses MLflow, because its import and its first use of a database take seconds.

    Any failure becomes one warning, and nothing more is logged. Rows and tables do not depend on MLflow. The thread is
    a daemon, so that a server without an answer cannot keep the process alive.
    """

    def __init__(self, suite_name: str, store: Store) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._suite_name = suite_name
        self._store = store
        self._queue: queue.SimpleQueue[Row | BackgroundStep | Ending] = queue.SimpleQueue()
        self._kept: list[Result] = []
        self._progress = 0
        self._abandoned = False

    def put(self, result: Result, cached: bool) -> None:
        """Log a row soon, or at the end if nothing is new. Returns at once."""
        if result.status == "interrupted":
            return
        new = not cached and result.status not in UNRUN
        self._queue.put(Row(result, new))
        if not new:
            self._kept.append(result)
        elif self.ident is None:
            self.start()

    def put_background(self, news: BackgroundStep) -> None:
        """Soon log the results of a background step to the cells that were logged without them. Returns at once."""
        self._queue.put(news)

    def finish(self, ending: Ending) -> None:
        """Wait for the queue while it gets shorter, or while other processes have their turn."""
        if self.ident is None and self._is_behind():
            self.start()
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
        turns = Turns.of(self._store.home, self._go_on)
        try:
            self._write(turns)
        except Exception as error:  # noqa: BLE001 - MLflow, its database and its server may fail in any way
            trouble = Trouble.of(error, self._suite_name, self._store.home)
            self._give_up(trouble.what, trouble.cure)
        finally:
            turns.leases.close()

    def _is_behind(self) -> bool:
        """True if a database lacks kept rows, or cannot be read. In the second case MLflow will say why."""
        database = Database.of(self._store.home)
        if database is None or not self._kept:
            return False
        try:
            return not _database_holds(self._kept, self._suite_name, self._store)
        except (sqlite3.Error, OSError):
            return True

    def _write(self, turns: Turns) -> None:
        experiment = Experiment.open(self._suite_name, self._store, turns)
        run = Invocation(experiment, "run")
        held: set[str] | None = None
        for item in self._taken(experiment.rows_at_once):
            if isinstance(item, Ending):
                run.finish(item)
            elif self._abandoned:
                return
            elif isinstance(item, BackgroundStep):
                run.log_background(item)
            else:
                if held is None and not all(row.new for row in item):
                    held = experiment.identities()
                run.log(*(row.result for row in item if row.new or identity(row.result) not in (held or ())))
            self._go_on()

    def _taken(self, at_once: int) -> Iterator[list[Row] | BackgroundStep | Ending]:
        """Batches of the queue until the end: rows that wait together, up to a limit."""
        rows: list[Row] = []
        while True:
            if rows and (len(rows) == at_once or self._queue.empty()):
                yield rows
                rows = []
            item = self._queue.get()
            if isinstance(item, Row):
                rows.append(item)
                continue
            if rows:
                yield rows
                rows = []
            yield item
            if isinstance(item, Ending):
                return

    def _go_on(self) -> None:
        self._progress += 1

    def _give_up(self, what: str, cure: str | None = None) -> None:
        if not self._abandoned:
            self._abandoned = True
            logger.warning(
                "MLflow logging stopped (%s); results are not affected, %s",
                what,
                cure or f"`zsqbench mlflow sync {self._suite_name}` logs what is missing",
            )
