"""The baseline step measures the float network with the same code and data as its quantized copies."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import ModelSpec
from zsqbench.steps import evaluations
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.step import Job, Step
from zsqbench.store import Store
from zsqbench.suite import Suite

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

FLOAT_ACCURACY_TOLERANCE = 0.1
"""Allowed percentage points between the stated and the measured accuracy of a float network. Libraries round
differently."""


class Baseline(Job):
    """A step that reads the float network and the evaluation data. It leaves metrics, and the labels of samples."""

    kind: ClassVar[str] = "baseline"
    final: ClassVar[bool] = True
    of_set: ClassVar[bool] = True

    data: str
    """Digest of the evaluation data."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step:
        """One step for each network and data."""
        accuracy = cell.suite.models[cell.cell.model].float_accuracy
        claim = () if accuracy is None else (str(accuracy),)
        parts = (cell.facts.digest, *evaluations.identity(cell), *claim)
        return cell.step(cls, cell.cell.model, parts, images=lambda: cell.evaluated)

    @classmethod
    def comes_before(cls, cell: CellPlanning) -> tuple[Step, ...]:
        """The baseline. Nothing is made of a network that cannot be measured or that is not the claimed network."""
        return (cell.steps[cls.kind],)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """The digest of the data."""
        return {"data": data.evaluation if data else ""}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Measure the network, and compare the result with the accuracy that the suite states."""
        teacher = session.teacher(self)
        evaluation = evaluations.measure(session, self, reporter, teacher.module, teacher)
        check_float_accuracy(self.model, session.task(self).metric, evaluation.metrics)
        content = evaluations.content(evaluation, self.data)
        session.write(
            self, reporter, content, lambda folder: evaluations.write_samples(folder, evaluation, of_float=True)
        )

    @classmethod
    def row(cls, store: Store, keys: Mapping[str, str]) -> dict[str, Any]:
        """The metrics of the float network, and the notes of the task on network and data."""
        artifact = store.read(cls.kind, keys[cls.kind])
        found = artifact.content
        with artifact.reading():
            data = {"evaluated": int(found["samples"]), "digest": str(found["data"])}
            return {"float_metrics": evaluations.numbers(found["metrics"]), "data": data, "notes": artifact.notes}


def check_float_accuracy(model: ModelSpec, metric: str, metrics: Mapping[str, float]) -> None:
    """Raise ZSQBenchError if the float network does not reach the accuracy that the suite states."""
    expected, measured = model.float_accuracy, float(metrics[metric])
    # rounded, so that 71.08 and 70.98 are 0.1 apart
    if expected is not None and round(abs(measured - expected), 6) > FLOAT_ACCURACY_TOLERANCE:
        raise ZSQBenchError(
            f"the float network {model.name} reaches {measured:.3f} % {metric}, and its float_accuracy is "
            f"{expected}: check its weights, the evaluation data, and how images are resized, cropped and "
            "normalised"
        )
