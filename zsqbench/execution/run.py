"""One invocation: find the data and models of a suite, plan it, run missing steps, write rows and the table."""

import contextlib
import importlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zsqbench.errors import CorruptArtifactError, NothingSelectedError, ZSQBenchError
from zsqbench.execution.loop import Loop
from zsqbench.execution.observers import Observers
from zsqbench.execution.plan import (
    Facts,
    Inspections,
    Plan,
    PlannedCell,
    find_data,
    inspect_steps,
    make_plan,
    resolve_steps,
)
from zsqbench.execution.recorder import Recorder, write_rows
from zsqbench.execution.session import Session, WorkerConfig
from zsqbench.execution.shards import Part, Shard
from zsqbench.execution.signals import Interrupted, Signals
from zsqbench.leases import RUN, Leases
from zsqbench.leftovers import Leftovers, remove
from zsqbench.methods import Engine
from zsqbench.reports.evidence import Evidence
from zsqbench.reports.resultfile import SCHEMA, Contents, ResultFile
from zsqbench.reports.results import Result
from zsqbench.reports.site.source import Origin, Source, report_folder
from zsqbench.reports.suiterows import CONTRADICTED, SuiteRows, believed, counted, told
from zsqbench.steps import Data, Inspect, NetworkFacts, Outcome, Resolve, Step
from zsqbench.store import FileDigests, Store, write_atomically
from zsqbench.suite import Cell, DeclaredCells, Suite, settings_said
from zsqbench.zoo.models import BUILT

log = logging.getLogger("zsqbench")

NOT_LOADED = NetworkFacts("", bn=1, classes=1000, training_loss=True, input_size=(3, 224, 224))
"""The facts that a plan assumes for a network that was not loaded yet. They make no method impossible."""


@dataclass(frozen=True)
class RunReport:
    """The result of a run."""

    plan: Plan
    results: list[Result]
    """One row for each cell of the plan, in the order of the plan."""
    signal: int | None
    """The signal that interrupted the run. None: no signal."""
    outdated: str | None
    """Why another run is needed: a file changed after the run began. None: no file changed."""
    background_failures: Mapping[str, str]
    """Why background steps failed, by their label. No cell depends on them."""
    table: str
    """The leaderboard of all rows of the suite, in Markdown."""
    table_error: str | None
    """Why the leaderboard could not be written beside the rows, or lacks requested columns. None: no error."""
    report: Path | None = None
    """The start page of the requested report. None: not requested, or not written."""
    report_error: str | None = None
    """Why the report could not be written. None: no error."""

    @property
    def interrupted(self) -> bool:
        """True if a signal ended the run before it was done."""
        return self.signal is not None

    @property
    def failed(self) -> bool:
        """True if a cell failed, or ended differently than the suite file says."""
        return any(
            result.status in {"failed", "interrupted"}
            or (result.status == "impossible" and planned.cell.reason is None)
            for planned, result in zip(self.plan.cells, self.results, strict=True)
        )

    @property
    def nothing_ran(self) -> bool:
        """True if no cell of the plan could run at all."""
        return not any(planned.steps for planned in self.plan.cells)


@dataclass
class Run:
    """One invocation: a suite, where it runs, and where its rows go."""

    suite: Suite
    config: WorkerConfig
    results: Path
    """Folder of the row files."""
    columns: tuple[str, ...] = ()
    """The figures that the table shows beside results."""
    origin: Origin | None = None
    """How the user named the suite, for the commands in a report."""
    reports: bool = False
    """True if the run ends with a report of all rows of the suite. An interrupted run writes none. Needs an origin."""
    shard: Shard | None = None
    """The part of the cells that it runs. None: all cells."""
    store: Store = field(init=False)
    data: dict[str, Data] = field(init=False, default_factory=dict)
    resolve: dict[tuple[str, str], Step] = field(init=False, default_factory=dict)
    """For each (task, model), the step that loads the model to find its identity."""
    observers: Observers = field(init=False)

    _last_rows: tuple[Contents, SuiteRows] | None = field(init=False, default=None)
    """The contents of the row file at the last look, and their relation to the suite."""

    def __post_init__(self) -> None:
        self.store = Store(self.config.home)
        self.observers = Observers(self.suite)

    @cached_property
    def rows(self) -> ResultFile:
        """The rows of the suite."""
        return ResultFile(self.results / f"{self.suite.name}.jsonl")

    @property
    def table(self) -> Path:
        """The file of the leaderboard."""
        return self.results / f"{self.suite.name}.md"

    def find(self, cells: Sequence[Cell]) -> dict[tuple[str, str], NetworkFacts]:
        """Find the data and the model files of these cells. Returns the facts that earlier runs found of the models.

        Raises ZSQBenchError before anything runs, if a data root or a weights file is missing.
        """
        if all(cell.excluded for cell in cells):
            left = "all of them are excluded" if cells else "none is selected"
            raise NothingSelectedError(f"no cell of suite {self.suite.name} can run: {left}")
        digests = FileDigests(self.store)
        self.data = find_data(self.suite, cells, self.config.data_root, digests)
        self.resolve = resolve_steps(self.suite, cells, digests)
        try:
            digests.save()
        except OSError as error:
            raise ZSQBenchError(f"cannot write to {self.config.home}: {error.strerror}; see --home") from error
        found = {pair: Resolve.facts(self.store, step.key) for pair, step in self.resolve.items()}
        return {pair: facts for pair, facts in found.items() if facts is not None}

    def plan(self, cells: Sequence[Cell], facts: Facts, inspections: Inspections) -> Plan:
        """Plan cells with the known facts of their models and students. Call `find` before.

        Rows of another schema do not count: a warning says so, and a run replaces them. The same holds for other rows
        that do not count.
        """
        contents = self.rows.contents()
        if contents.schemas:
            log.warning(
                "%s has rows of schema %s, and this zsqbench reads %s: their cells are measured again",
                self.rows.path,
                ", ".join(map(str, contents.schemas)),
                SCHEMA,
            )
        rows = self._rows_in(contents)
        rows.warn(self.rows.path, contents)
        by_cell = {row.cell: row for row in rows.own}
        plan = make_plan(self.suite, cells, self.data, facts, inspections, self.store, by_cell)
        for name in self._disproved(plan):
            del by_cell[name]
        return plan

    def part(self, cells: Sequence[Cell], facts: Facts, shard: Shard) -> Part:
        """A shard of these cells. Call `find` before.

        Raises ZSQBenchError if a network could not be loaded, because other machines may know its cost. Raises
        NothingSelectedError for a shard without cells.
        """
        for (_, model), known in facts.items():
            if isinstance(known, Outcome):
                raise ZSQBenchError(
                    f"cannot split {self.suite.name} into shards, because {model} could not be loaded here: "
                    f"{known.cause}; correct this, or leave the model out on every machine with -k 'not :{model}:'"
                )
        part = shard.part(make_plan(self.suite, cells, self.data, facts, {}, self.store))
        if not part.cells:
            raise NothingSelectedError(
                f"--shard {shard} has no cells: {self.suite.name} can only be split into fewer than {shard.of} parts, "
                "because cells with the same set stay together; give fewer shards"
            )
        return part

    def _rows_in(self, contents: Contents) -> SuiteRows:
        """The rows, sorted by their relation to the suite. They are read again only if the file has changed."""
        if self._last_rows is None or self._last_rows[0] is not contents:
            has_cell = self._names.__contains__
            rows = SuiteRows.of(contents, self.suite.name, lambda row: has_cell(row.cell) and bool(settings_said(row)))
            self._last_rows = contents, rows
        return self._last_rows[1]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(cell.name for cell in self.suite.cells)

    def _disproved(self, plan: Plan) -> list[str]:
        """The cells whose row contradicts its artifacts, or whose artifacts are damaged. They are not finished."""
        evidence = Evidence(self.store)
        differences: dict[str, str] = {}
        damaged: list[str] = []
        for name in (planned.cell.name for planned in plan.cells if plan.is_finished(planned)):
            try:
                difference = evidence.contradiction(plan.rows[name])
            except CorruptArtifactError:
                damaged.append(name)
            else:
                if difference is not None:
                    differences[name] = difference
        evidence.agreements.save()
        if differences:
            log.warning(CONTRADICTED, counted(len(differences), "row"), told(differences))
        return [*differences, *damaged]

    def provisional_plan(self, cells: Sequence[Cell]) -> Plan:
        """A plan without running anything. It names networks and students that are not loaded or inspected yet."""
        known = self.find(cells)
        pending = [step.cell.model for pair, step in self.resolve.items() if pair not in known]
        assumed = {pair: replace(NOT_LOADED, digest=f"pending {step.key}") for pair, step in self.resolve.items()}
        steps = inspect_steps(self.suite, cells, known)
        found = {student: Inspect.facts(self.store, step.key) for student, step in steps.items()}
        inspected = {student: facts for student, facts in found.items() if facts is not None}
        uninspected = dict.fromkeys(steps[student].label for student in found.keys() - inspected.keys())
        plan = self.plan(cells, assumed | known, inspected)
        return replace(plan, pending=pending, uninspected=sorted(uninspected))

    def execute(self, cells: Sequence[Cell], engine: Engine) -> RunReport:
        """Run the missing steps of these cells, and write rows and table. After a signal, finished results are kept.

        The hook `suite_finished` is called once, at any end.
        """
        signals, leases = Signals(), Leases(self.config.home)
        with signals.handled(), contextlib.closing(leases):
            name = f"{RUN}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            leases.take(name)
            Leftovers(self.config.home).clear_temporary([name])
            return self._execute(cells, Loop(self, engine, leases), signals)

    def _execute(self, cells: Sequence[Cell], loop: Loop, signals: Signals) -> RunReport:
        known = self.find(cells)
        for pair in [pair for pair in known if self.suite.models[pair[1]].weights == BUILT]:
            # a user's function may read files that change unnoticed
            remove(self.store.folder(Resolve.kind, self.resolve[pair].key))
            del known[pair]
        results: list[Result] = []
        written: str | None = None
        report, report_error = None, None
        try:
            with contextlib.closing(loop):
                loop.run(step for pair, step in self.resolve.items() if pair not in known)
                facts = {pair: known.get(pair) or self._learned(step, loop) for pair, step in self.resolve.items()}
                if self.shard is not None:
                    if loop.signal is not None:
                        raise Interrupted(loop.signal)  # the cells of this run are not known yet
                    cells = self.part(cells, facts, self.shard).cells
                plan = self.plan(cells, facts, self._inspect(cells, facts, loop))
                results = self._run_plan(plan, loop, facts)
                with signals.deferred():
                    rows = self._keep_rows(results)
                    shown = self._shown(results, rows)
                    table, table_error = self._write_table(shown)
                written = None if table_error else str(self.table)
                if self.reports and self.origin and not loop.interrupted:
                    report, report_error = self._write_report(shown, self.origin)
        finally:
            folder = None if report is None else str(report.parent)
            self.notify("suite_finished", suite=self.suite, results=results, table=written, report=folder)
        outdated = next((outcome.error for outcome in loop.outcomes.values() if outcome.outdated), None)
        number = loop.signal or signals.received
        failures = loop.background_failures()
        return RunReport(plan, results, number, outdated, failures, table, table_error, report, report_error)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an observer hook."""
        self.observers.notify(hook, **arguments)

    def _inspect(self, cells: Sequence[Cell], facts: Facts, loop: Loop) -> Inspections:
        """Inspect the students of cells that no run has inspected yet."""
        loop.facts = facts
        steps = inspect_steps(self.suite, cells, facts)
        different = {step.key: step for step in steps.values()}
        if not loop.interrupted:
            loop.run(step for step in different.values() if Inspect.facts(self.store, step.key) is None)
        interrupted = Outcome("interrupted", error="the run was interrupted")
        found = {key: Inspect.facts(self.store, key) or loop.outcomes.get(key, interrupted) for key in different}
        return {student: found[step.key] for student, step in steps.items()}

    def _learned(self, step: Step, loop: Loop) -> NetworkFacts | Outcome:
        """The facts that a resolve step of this run found, or why it failed."""
        return Resolve.facts(self.store, step.key) or loop.outcomes[step.key]

    def _run_plan(self, plan: Plan, loop: Loop, facts: Facts) -> list[Result]:
        recorder = Recorder(self, plan, facts, loop.outcomes)
        try:
            self.notify("suite_started", suite=self.suite, plan=plan)
            for planned in plan.cells:
                if plan.is_finished(planned):
                    recorder.keep(planned)
                elif not planned.steps:
                    recorder.record(planned)
            missing = recorder.missing()
            if missing:
                # rows need it; an import that Ctrl-C interrupts cannot be repeated in this process
                importlib.import_module("safetensors.numpy")
            self._verify(plan, missing)
            if not loop.interrupted:
                loop.run(plan.to_do(missing).values(), recorder.record_settled)
        except KeyboardInterrupt as interruption:
            loop.interrupt(interruption)
        for planned in recorder.missing():
            recorder.record(planned)
        return recorder.results()

    def _verify(self, plan: Plan, cells: Sequence[PlannedCell]) -> None:
        """Put damaged measurements aside, so that they are made again and not used."""
        for key in {step.key for planned in cells for step in planned.final.values()} & plan.cached:
            try:
                self.store.read(plan.steps[key].kind, key)
            except CorruptArtifactError:
                self.store.discard(key)
                plan.cached.discard(key)

    def _keep_rows(self, results: Sequence[Result]) -> list[Result]:
        """Rewrite the row file in the order of the suite. Returns the rows of its cells.

        Only rows of cells that the suite no longer has are removed. Rows of cells that it has without overrides stay,
        and so do rows of another suite.
        """
        new = {result.cell: result for result in results}
        own: list[Result] = []

        def arrange(contents: Contents) -> list[Result]:
            rows = self._rows_in(contents)
            found = {row.cell: row for row in rows.own}
            latest = found | {name: _later(result, found.get(name)) for name, result in new.items()}
            own[:] = [latest[cell.name] for cell in self.suite.cells if cell.name in latest]
            return [*own, *(row for row in rows.gone if self._is_declared(row)), *rows.foreign]

        write_rows(self.rows, lambda file: file.rewrite(arrange))
        return own

    def _is_declared(self, row: Result) -> bool:
        """True if the suite file has a cell to which this run gave other values."""
        return bool(self.suite.overrides) and self._declared.have(row)

    @cached_property
    def _declared(self) -> DeclaredCells:
        return DeclaredCells.read(self.suite.path)

    def _shown(self, results: Sequence[Result], rows: Sequence[Result]) -> list[Result]:
        """All rows of the suite. If artifacts contradict an earlier row, a row of a failed cell replaces it."""
        new = {result.cell for result in results}
        others = {row.cell: row for row in believed([row for row in rows if row.cell not in new], self.store)}
        return [others.get(row.cell, row) for row in rows]

    def _write_report(self, shown: Sequence[Result], origin: Origin) -> tuple[Path | None, str | None]:
        """The start page of the report of these rows, or why it could not be written."""
        from zsqbench.execution.viewing import Viewers
        from zsqbench.reports.site.writing import write_report

        there = {row.cell for row in shown}
        without = tuple(cell.name for cell in self.suite.cells if cell.name not in there)
        viewers = Viewers(Session(self.config))
        source = Source(self.suite.name, shown, without, self.store, origin, viewers)
        try:
            return write_report(source, report_folder(self.results, self.suite.name)), None
        except ZSQBenchError as error:
            return None, str(error)

    def _write_table(self, shown: Sequence[Result]) -> tuple[str, str | None]:
        """The leaderboard of rows, and why it could not be written (None: it was)."""
        from zsqbench.reports.tables.leaderboard import leaderboard  # imports pandas, which planning does not need
        from zsqbench.reports.tables.tabulation import Layout

        wrong = None
        try:
            table = leaderboard(shown, "md", Layout(self.columns), self.store.home)
        except ZSQBenchError as error:  # the names in rows are known only now
            table, wrong = leaderboard(shown, "md", home=self.store.home), str(error)
        try:
            write_atomically(self.table, table + "\n")
        except OSError as error:
            return table, f"cannot write {self.table}: {error.strerror}"
        return table, wrong


def _later(result: Result, found: Result | None) -> Result:
    """The row of this run, or of another run that did the cell meanwhile when this run could not."""
    if found is None or found.definition != result.definition or result.status == "done":
        return result
    return found if found.status == "done" and found.counts_over(result) else result
