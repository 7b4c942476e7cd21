"""From settled steps to rows, each cell once."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.execution.plan import (
    Facts,
    ModelFacts,
    Outcome,
    Plan,
    PlannedCell,
    Step,
)
from zsqbench.reports.results import Result, ResultFile, environment

if TYPE_CHECKING:
    from zsqbench.execution.run import Run


class Recorder:
    """Turns settled cells into rows, each once."""

    def __init__(self, run: "Run", plan: Plan, facts: Facts, outcomes: Mapping[str, Outcome]) -> None:
        self.run = run
        self.plan = plan
        self.facts = facts
        self.outcomes = outcomes
        self._results: dict[str, Result] = {}
        self._environment = environment()
        self._ending_with: dict[str, list[PlannedCell]] = {}
        for planned in plan.cells:
            for step in planned.final.values():
                self._ending_with.setdefault(step.key, []).append(planned)

    def results(self) -> list[Result]:
        """The rows in the order of the plan."""
        return [self._results[planned.cell.name] for planned in self.plan.cells]

    def missing(self) -> list[PlannedCell]:
        """The cells without a row yet."""
        return [planned for planned in self.plan.cells if planned.cell.name not in self._results]

    def keep(self, planned: PlannedCell) -> None:
        """Take over the row of an earlier run, with what the suite's papers say of it now."""
        result, published = self.plan.rows[planned.cell.name], self.run.suite.published_of(planned.cell)
        if result.published != published:
            result = result.model_copy(update={"published": published})
        self._results[planned.cell.name] = result
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=True)

    def record_settled(self, steps: Iterable[Step]) -> None:
        """Write the rows of the cells that came to their end with these steps."""
        for planned in (planned for step in steps for planned in self._ending_with.get(step.key, ())):
            settled = all(map(self._is_settled, planned.final.values()))
            if settled and planned.cell.name not in self._results:
                self.record(planned)

    def record(self, planned: PlannedCell) -> None:
        """Write the row of a cell, unless an earlier row says the same or, after an interruption, more."""
        result = self._result(planned)
        before = self.plan.rows.get(planned.cell.name)
        if before is not None and before.definition == result.definition:
            as_before = not planned.steps or before.keys == result.keys
            if result == before or (result.status == "interrupted" and before.status == "done" and as_before):
                self.keep(planned)
                return
        self._results[planned.cell.name] = result
        write_rows(self.run.rows, lambda rows: rows.append(result))
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=False)

    def _is_settled(self, step: Step) -> bool:
        return step.key in self.outcomes or step.key in self.plan.cached

    def _is_measured(self, step: Step) -> bool:
        outcome = self.outcomes.get(step.key)
        return outcome.status == "done" if outcome else step.key in self.plan.cached

    def _result(self, planned: PlannedCell) -> Result:
        cell, suite = planned.cell, self.run.suite
        facts = self.facts.get((cell.task, cell.model))
        generator = suite.generator(cell)
        variants = {"task": suite.tasks[cell.task], "quantizer": suite.quantizers[cell.quantizer]}
        if cell.generator is not None:
            variants["generator"] = suite.generators[cell.generator]
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
            methods={kind: variant.describe() for kind, variant in variants.items()},
            model_facts=vars(facts) if isinstance(facts, ModelFacts) else {},
            data_free=generator is None or not generator.uses_real_data,
            published=suite.published_of(cell),
            keys=planned.keys,
            **{"environment": self._environment} | self._ending(planned),
        )

    def _ending(self, planned: PlannedCell) -> dict[str, Any]:
        """How it ended: what was measured, or what went wrong first."""
        if not planned.steps:
            return {"status": planned.status, "reason": planned.reason, "traceback": planned.traceback}
        if all(map(self._is_measured, planned.final.values())):
            return {"status": "done"} | self._measured(planned)
        for name, step in planned.named.items():
            outcome = self.outcomes.get(step.key)
            if outcome is not None and outcome.status in {"failed", "interrupted"}:
                label = f" {step.quantizer.label}" if name in planned.starts and step.quantizer else ""
                reason = f"{name}{label}: {outcome.error}"
                ending = {"status": outcome.status, "reason": reason, "traceback": outcome.traceback}
                return ending | self._float_metrics(planned)
        return {"status": "interrupted", "reason": "the run was interrupted"}

    def _float_metrics(self, planned: PlannedCell) -> dict[str, Any]:
        """What the float network reached, where that much is known."""
        baseline = planned.steps["baseline"]
        if not self.run.store.has("baseline", baseline.key):
            return {}
        evaluation = self.run.store.read_json("baseline", baseline.key, "evaluation.json")
        return {
            "float_metrics": evaluation["metrics"],
            "data": {"evaluated": evaluation["samples"], "calibrated": None},
        }

    def _measured(self, planned: PlannedCell) -> dict[str, Any]:
        store = self.run.store
        measured = {kind: step.key for kind, step in planned.final.items() if kind != "oracle"}
        evaluations = {kind: store.read_json(kind, key, "evaluation.json") for kind, key in measured.items()}
        manifests = {}
        for name, step in planned.named.items():
            # What was measured is known without them: images and network may be gone, or damaged.
            with contextlib.suppress(CorruptArtifactError):
                manifests[name] = store.manifest(step.kind, step.key)
        return {
            "metrics": evaluations["evaluate"]["metrics"] | self._agreement(measured["baseline"], measured["evaluate"]),
            "float_metrics": evaluations["baseline"]["metrics"],
            "oracle": self._oracle(planned),
            "data": {
                "evaluated": evaluations["evaluate"]["samples"],
                "calibrated": manifests["evaluate"]["calibrated"],
            },
            "tensors": manifests["evaluate"]["tensors"] or {},
            "environment": manifests["evaluate"]["environment"],
            "seconds": {name: round(manifest["seconds"], 3) for name, manifest in manifests.items()},
            "peak_memory": {name: manifest["peak_memory"] for name, manifest in manifests.items()},
        }

    def _agreement(self, baseline: str, evaluate: str) -> dict[str, float]:
        """Percent of the samples of which both networks predict the same; nothing where predictions are not known."""
        import numpy as np

        store = self.run.store  # which verified these files when the metrics were read
        files = [store.folder("baseline", baseline), store.folder("evaluate", evaluate)]
        files = [folder / "predictions.npy" for folder in files]
        if not all(file.is_file() for file in files):
            return {}
        first, second = (np.load(file, allow_pickle=False) for file in files)
        if first.shape != second.shape:
            return {}
        return {"agreement": 100 * float(((first == second) & (first >= 0)).mean())}

    def _oracle(self, planned: PlannedCell) -> dict[str, Any]:
        """The best of the kept epochs, of a cell that has such a step."""
        if "oracle" not in planned.steps:
            return {}
        found = self.run.store.read_json("oracle", planned.steps["oracle"].key, "oracle.json")
        return {**found["best"], "of": len(found["epochs"])}


def write_rows(rows: ResultFile, write: Callable[[ResultFile], None]) -> None:
    """Write to a row file. Raises ZSQBenchError, which says that nothing is lost, where that fails."""
    try:
        write(rows)
    except OSError as error:
        text = f"cannot write {rows.path}: {error.strerror}; what is done is in the store, run again with space"
        raise ZSQBenchError(text) from error
