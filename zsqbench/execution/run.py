"""One invocation: find what a suite needs, plan it, run what is missing, write rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsqbench.errors import CorruptArtifactError, NothingSelectedError, ZSQBenchError, one_line
from zsqbench.execution.loop import Loop, cause, is_minor
from zsqbench.execution.plan import (
    Data,
    Facts,
    ModelFacts,
    Outcome,
    Plan,
    PlannedCell,
    Step,
    find_data,
    make_plan,
    resolve_steps,
)
from zsqbench.execution.recorder import Recorder, write_rows
from zsqbench.execution.session import Place
from zsqbench.methods import Engine
from zsqbench.reports.results import Result, ResultFile
from zsqbench.store import FileDigests, Store
from zsqbench.suite import Cell, Suite


@dataclass(frozen=True)
class Report:
    """What a run did."""

    plan: Plan
    results: list[Result]
    """One for each cell of the plan, in its order."""
    interrupted: bool
    undiagnosed: Mapping[str, str]
    """Why diagnostics could not be made, by the label of their step; no cell depends on that."""


@dataclass
class Run:
    """One invocation: a suite, where it runs, and where its rows go."""

    suite: Suite
    place: Place
    results: Path
    """Folder of the row files."""
    store: Store = field(init=False)
    data: dict[str, Data] = field(init=False, default_factory=dict)
    resolve: dict[tuple[str, str], Step] = field(init=False, default_factory=dict)
    """For each (task, model), the step that loads the model to learn its identity."""

    def __post_init__(self) -> None:
        self.store = Store(self.place.home)

    @property
    def rows(self) -> ResultFile:
        """The rows of the suite."""
        return ResultFile(self.results / f"{self.suite.name}.jsonl")

    def find(self, cells: Sequence[Cell]) -> dict[tuple[str, str], ModelFacts]:
        """Find the data and the model files of these cells; returns what earlier runs learnt of the models.

        Raises ZSQBenchError where a data root or a weights file is absent, before anything runs.
        """
        if all(cell.excluded for cell in cells):
            left = "all of them are excluded" if cells else "none is selected"
            raise NothingSelectedError(f"no cell of suite {self.suite.name} can run: {left}")
        digests = FileDigests(self.store)
        self.data = find_data(self.suite, cells, self.place.data_root, digests)
        self.resolve = resolve_steps(self.suite, cells, digests)
        try:
            digests.save()
        except OSError as error:
            raise ZSQBenchError(f"cannot write to {self.place.home}: {error.strerror}; see --home") from error
        return {pair: facts for pair, step in self.resolve.items() if (facts := self._facts(step)) is not None}

    def plan(self, cells: Sequence[Cell], facts: Facts) -> Plan:
        """Plan cells with what is known of their models; `find` comes before."""
        return make_plan(self.suite, cells, self.data, facts, self.store, self.rows.read())

    def execute(self, cells: Sequence[Cell], engine: Engine) -> Report:
        """Run these cells, whatever of them is not there yet. Ctrl-C ends it with what is done."""
        known = self.find(cells)
        loop = Loop(self, engine)
        try:
            loop.run(step for pair, step in self.resolve.items() if pair not in known)
            facts: dict[tuple[str, str], ModelFacts | Outcome] = {
                pair: known.get(pair) or self._facts(step) or loop.outcomes[step.key]
                for pair, step in self.resolve.items()
            }
            plan = self.plan(cells, facts)
            results = self._run_plan(plan, loop, facts)
            self._keep_rows(plan, results)
        except BaseException:
            self.notify("suite_finished", suite=self.suite, results=[], table=None)
            raise
        finally:
            loop.close()
        failed = {key: outcome for key, outcome in loop.outcomes.items() if outcome.status == "failed"}
        undiagnosed = {
            step.label: cause(failed[key]) for key, step in plan.steps.items() if key in failed and is_minor(step)
        }
        return Report(plan, results, loop.interrupted, undiagnosed)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Fire an observer hook; an observer that fails is a warning, never a lost cell."""
        try:
            getattr(self.suite.catalog.hooks.hook, hook)(**arguments)
        except Exception as error:  # noqa: BLE001 - a stranger's observer may raise anything
            logging.getLogger("zsqbench").warning("an observer failed in %s: %s", hook, one_line(error))

    def _facts(self, step: Step) -> ModelFacts | None:
        """What loading a model told an earlier step."""
        if not self.store.has("resolve", step.key):
            return None
        try:
            return ModelFacts(**self.store.read_json("resolve", step.key, "facts.json"))
        except (CorruptArtifactError, TypeError):  # the latter: written by another version of zsqbench
            self.store.discard(step.key)
            return None

    def _run_plan(self, plan: Plan, loop: "Loop", facts: Facts) -> list[Result]:
        recorder = Recorder(self, plan, facts, loop.outcomes)
        try:
            self.notify("suite_started", suite=self.suite, plan=plan)
            for planned in plan.cells:
                if plan.is_finished(planned):
                    recorder.keep(planned)
                elif not planned.steps:
                    recorder.record(planned)
            self._verify(plan, recorder.missing())
            if not loop.interrupted:
                loop.facts = facts
                loop.run(plan.to_do(recorder.missing()).values(), recorder.record_settled)
        except KeyboardInterrupt:
            loop.interrupt()
        for planned in recorder.missing():
            recorder.record(planned)
        return recorder.results()

    def _verify(self, plan: Plan, cells: Sequence[PlannedCell]) -> None:
        """Put damaged measurements aside, so that they are made again rather than believed."""
        for key in {step.key for planned in cells for step in planned.final.values()} & plan.cached:
            try:
                self.store.read(plan.steps[key].kind, key)
            except CorruptArtifactError:
                self.store.discard(key)
                plan.cached.discard(key)

    def _keep_rows(self, plan: Plan, results: Sequence[Result]) -> None:
        """Rewrite the row file in the order of the suite; only rows of cells that the suite no longer has, go."""
        new = {result.cell: result for result in results}
        if all(plan.rows.get(name) is result for name, result in new.items()) and len(new) == len(plan.rows):
            return
        there = self.rows.read()  # again: another run of the suite may have added some
        rows = there | new
        ordered = [rows[cell.name] for cell in self.suite.cells if cell.name in rows]
        write_rows(self.rows, lambda rows: rows.rewrite(ordered))
