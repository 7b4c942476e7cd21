"""Make rows from settled steps, one for each cell."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.execution.plan import Facts, Plan, PlannedCell
from zsqbench.reports.agreements import Agreements
from zsqbench.reports.evidence import ReadOnce
from zsqbench.reports.resultfile import ResultFile
from zsqbench.reports.results import Result, environment
from zsqbench.steps import KINDS, NetworkFacts, Outcome, Step, contributed

if TYPE_CHECKING:
    from zsqbench.execution.run import Run


class Recorder:
    """Makes one row from each settled cell."""

    def __init__(self, run: "Run", plan: Plan, facts: Facts, outcomes: Mapping[str, Outcome]) -> None:
        self.run = run
        self.plan = plan
        self.facts = facts
        self.outcomes = outcomes
        self._store = ReadOnce(run.store.home)
        self._agreements = Agreements(run.store)
        self._results: dict[str, Result] = {}
        self._environment = environment()
        self._costs: dict[str, tuple[float, int]] = {}
        self._damaged: dict[str, str] = {}
        """Why measurements could not be read, by their key."""
        self._said: dict[str, Any] = {}
        """Parts that several rows share, by their text."""
        self._ending_with: dict[str, list[PlannedCell]] = {}
        for planned in plan.cells:
            for step in planned.final.values():
                self._ending_with.setdefault(step.key, []).append(planned)

    def results(self) -> list[Result]:
        """The rows in the order of the plan. They are remembered as equal to their artifacts."""
        self._agreements.save()
        return [self._results[planned.cell.name] for planned in self.plan.cells]

    def missing(self) -> list[PlannedCell]:
        """The cells without a row yet."""
        return [planned for planned in self.plan.cells if planned.cell.name not in self._results]

    def keep(self, planned: PlannedCell) -> None:
        """Keep the row of an earlier run, with the present published values of the suite."""
        result, published = self.plan.rows[planned.cell.name], self.run.suite.published_of(planned.cell)
        if result.published != published:
            result = result.model_copy(update={"published": published})
        self._results[planned.cell.name] = result
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=True)

    def record_settled(self, steps: Iterable[Step]) -> None:
        """Write the rows of the cells that ended with these steps."""
        steps = list(steps)
        for step in steps:
            if self._costs.pop(step.key, None) is not None:  # the artifact was damaged and is made again
                self._store = ReadOnce(self.run.store.home)
                self._agreements.forget()
        for planned in (planned for step in steps for planned in self._ending_with.get(step.key, ())):
            settled = all(map(self._is_settled, planned.final.values()))
            if settled and planned.cell.name not in self._results:
                self.record(planned)

    def record(self, planned: PlannedCell) -> None:
        """Write the row of a cell, unless an earlier row says the same or, if the cell was interrupted, more."""
        stamp = self._agreements.stamp(planned.keys)
        result = self._result(planned)
        if result.status == "done":
            self._agreements.add(result, stamp)
        before = self.plan.rows.get(planned.cell.name)
        if before is not None:
            # the new row stays the newer row, even if the clock was set back
            finished = before.finished if result.says_the_same(before) else max(result.ended, before.ended)
            result = result.model_copy(update={"finished": finished})
            if result == before or not result.counts_over(before):
                self.keep(planned)
                return
        self._share(result)
        self._results[planned.cell.name] = result
        write_rows(self.run.rows, lambda rows: rows.append(result))
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=False)

    def _share(self, result: Result) -> None:
        """Let rows share equal parts as the same object. The rows of 10,000 cells then take a third less memory."""
        for name in ("methods", "model_facts", "environment", "settings"):
            value = getattr(result, name)
            vars(result)[name] = self._said.setdefault(repr(value), value)

    def _is_settled(self, step: Step) -> bool:
        return step.key in self.outcomes or step.key in self.plan.cached

    def _is_measured(self, step: Step) -> bool:
        outcome = self.outcomes.get(step.key)
        return outcome.status == "done" if outcome else step.key in self.plan.cached

    def _result(self, planned: PlannedCell) -> Result:
        cell, suite = planned.cell, self.run.suite
        facts = self.facts.get((cell.task, cell.model))
        generator = suite.generator(cell)
        return Result(
            suite=suite.name,
            cell=cell.name,
            definition=suite.definition(cell),
            task=cell.task,
            model=cell.model,
            generator=cell.generator,
            quantizer=cell.quantizer,
            scheme=cell.scheme,
            seed=cell.seed,
            settings=cell.settings.model_dump(mode="json"),
            metric=suite.task(cell.task).metric,
            methods={kind: variant.describe() for kind, variant in planned.methods.items()},
            model_facts=vars(facts) if isinstance(facts, NetworkFacts) else {},
            data_free=generator is None or not generator.uses_real_data,
            published=suite.published_of(cell),
            keys=planned.keys,
            not_run={group: why for job in KINDS.values() for group, why in job.not_run(cell).items()},
            finished=datetime.now(UTC),
            **{"environment": self._environment} | self._ending(planned),
        ).checked()

    def _ending(self, planned: PlannedCell) -> dict[str, Any]:
        """The ending of a cell: its measured values, or its first failure."""
        if not planned.steps:
            return {"status": planned.status, "reason": planned.reason, "traceback": planned.traceback}
        if all(map(self._is_measured, planned.final.values())):
            try:
                return {"status": "done"} | self._contributed(planned, planned.final.values()) | self._cost(planned)
            except CorruptArtifactError as error:
                return self._of_float(planned) | self._damage(planned, error)
        for name, step in planned.named.items():
            outcome = self.outcomes.get(step.key)
            if outcome is not None and outcome.status in {"failed", "interrupted"}:
                label = f" {step.variant.label}" if name != step.kind and step.variant else ""
                reason = f"{name}{label}: {outcome.error}"
                ending = {"status": outcome.status, "reason": reason, "traceback": outcome.traceback}
                return ending | self._of_float(planned)
        return {"status": "interrupted", "reason": "the run was interrupted"}

    def _damage(self, planned: PlannedCell, error: CorruptArtifactError) -> dict[str, Any]:
        """The ending of a cell whose measurement was damaged later. The artifact is put aside, to be made again."""
        self.run.store.discard(error.key)
        detail = self._damaged.setdefault(error.key, error.detail)  # other cells only see that the artifact is gone
        kind = next(step.kind for step in planned.steps.values() if step.key == error.key)
        return {"status": "failed", "reason": f"{kind}: its artifact was damaged during the run ({detail}); run again"}

    def _of_float(self, planned: PlannedCell) -> dict[str, Any]:
        """The metrics of the float network. They are known even for a failed cell."""
        known = [step for step in planned.final.values() if not step.needs and self._is_measured(step)]
        with contextlib.suppress(CorruptArtifactError):  # the cell has failed already
            return self._contributed(planned, known)
        return {}

    def _contributed(self, planned: PlannedCell, steps: Iterable[Step]) -> dict[str, Any]:
        """The fields of the row that these steps fill."""
        return contributed((step.type for step in steps), self._store, planned.keys)

    def _cost(self, planned: PlannedCell) -> dict[str, Any]:
        """Seconds and bytes of all steps in the row."""
        costs = {name: self._cost_of(step) for name, step in planned.named.items()}
        known = {name: cost for name, cost in costs.items() if cost is not None}
        return {
            "seconds": {name: seconds for name, (seconds, _) in known.items()},
            "peak_memory": {name: peak_memory for name, (_, peak_memory) in known.items()},
        }

    def _cost_of(self, step: Step) -> tuple[float, int] | None:
        """Seconds and bytes of a step. Many cells may share it, so its manifest is read once."""
        if step.key not in self._costs:
            # The metrics are known without these steps: images and network may be gone or damaged.
            with contextlib.suppress(CorruptArtifactError):
                # the artifacts of the row were just read
                look = self._store.read if step.type.final else self._store.look
                artifact = look(step.kind, step.key)
                self._costs[step.key] = round(artifact.seconds, 3), artifact.peak_memory
        return self._costs.get(step.key)


def write_rows(rows: ResultFile, write: Callable[[ResultFile], object]) -> None:
    """Write to a row file. If this fails, raises ZSQBenchError, which says that nothing is lost."""
    try:
        write(rows)
    except OSError as error:
        text = f"cannot write {rows.path}: {error.strerror}; finished steps are in the store; free space and run again"
        raise ZSQBenchError(text) from error
