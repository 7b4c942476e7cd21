"""The oracle step measures the students of all kept epochs, after training. The method does not see the result."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Method
from zsqbench.reports.results import Result
from zsqbench.steps import evaluations
from zsqbench.steps.evaluate import label
from zsqbench.steps.planning import CellPlanning
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.step import Shown, Step
from zsqbench.steps.students import StudentJob, kept_epochs
from zsqbench.store import Store

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session


class Oracle(StudentJob):
    """A step that reads students of kept epochs and the evaluation data. It leaves the metric of each, and the best."""

    kind: ClassVar[str] = "oracle"
    final: ClassVar[bool] = True

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each quantized network, if the quantizer keeps epochs."""
        variant = cell.quantizer
        if not variant.keeps_epochs:
            return None
        needs = (cell.steps[Quantize.kind], *cls.ranking(cell))
        return cell.step(
            cls,
            label(cell.cell),
            evaluations.identity(cell),
            needs=needs,
            variant=variant,
            images=lambda: evaluations.of_student(cell) * _kept(variant.at_work.method),
        )

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Measure each student. The best one is chosen by the evaluation images."""
        teacher, metric = session.teacher(self), session.task(self).metric
        artifact = session.store.read(Quantize.kind, self.needs[Quantize.kind])
        kept = kept_epochs(artifact.folder)
        if not kept:
            raise ZSQBenchError(
                f"quantizer {self.quantizer.method} says that it keeps epochs, and kept none; it must call "
                "ctx.keep_epoch, or its options must leave an epoch to keep"
            )
        prepared = self.prepared(session)
        measured: list[dict[str, Any]] = (reporter.resume() or {"measured": []})["measured"]
        for epoch, path in list(kept.items())[len(measured) :]:
            student = self.restored(session, copy.deepcopy(prepared), artifact, path.name)
            metrics = evaluations.numbers(evaluations.measure(session, self, reporter, student, teacher).metrics)
            measured.append({"epoch": epoch, "metrics": metrics})
            reporter.log(metric, metrics[metric], epoch)
            reporter.checkpoint({"measured": measured})
        session.write(self, reporter, {"metric": metric, "best": best_epoch(measured, metric), "epochs": measured})

    @classmethod
    def row(cls, store: Store, keys: Mapping[str, str]) -> dict[str, Any]:
        """The best of the kept epochs."""
        artifact = store.read(cls.kind, keys[cls.kind])
        with artifact.reading():
            best, epochs = artifact.content["best"], artifact.content["epochs"]
            metrics = evaluations.numbers(best["metrics"])
            return {"oracle": {"epoch": int(best["epoch"]), "metrics": metrics, "of": len(epochs)}}

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The best of the kept epochs beside the last. In JSON, also the metric of each, if the artifact is here."""
        best, last = row.oracle_value, row.value
        if best is None or last is None:
            return None
        text = (
            f"oracle: {best:.2f} {row.metric} after epoch {row.oracle['epoch']}, the best of {row.oracle['of']} kept "
            f"epochs by the evaluated images themselves; the result is the last epoch's {last:.2f}"
        )
        key = row.keys.get(cls.kind, "")
        return Shown(cls.kind, store.read(cls.kind, key).content if key and store.has(cls.kind, key) else None, text)


def _kept(method: Method) -> int:
    """How many epochs a quantizer keeps, from its options with the usual names."""
    every, epochs = getattr(method, "keep_every", None) or 1, getattr(method, "epochs", None) or 1
    return -(-epochs // every)


def best_epoch(measured: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    """The first of the best epochs."""
    return max(measured, key=lambda one: float(one["metrics"][metric]))
