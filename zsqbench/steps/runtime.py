"""The onnxruntime step measures an exported network in ONNX Runtime, and compares it with the simulation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from zsqbench.export.options import ExportOptions
from zsqbench.methods import Evaluation
from zsqbench.reports.results import Result
from zsqbench.steps import evaluations
from zsqbench.steps.evaluate import Evaluate, label
from zsqbench.steps.export import FILE, RUNTIME, Export, compare_file
from zsqbench.steps.exportfloat import asked_export
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.step import Shown, Step
from zsqbench.steps.students import StudentJob
from zsqbench.store import Store
from zsqbench.suite import Suite
from zsqbench.versions import EXPORT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

MB = 1e6
EQUAL = "equal"
"""The metric: percent of the evaluation images with equal predictions of runtime and simulation."""


class Runtime(StudentJob):
    """A step that reads the exported file, the quantized network with its predictions, and the evaluation data.

    It leaves metrics, samples, and the findings of the comparison of the first images.
    """

    kind: ClassVar[str] = RUNTIME
    final: ClassVar[bool] = True

    data: str
    """Digest of the evaluation data."""
    options: ExportOptions

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each exported network, data, execution providers, and number of compared images."""
        options = asked_export(cell)
        if options is None:
            return None
        parts = (*evaluations.identity(cell), str(options.check), *options.providers, EXPORT_VERSION)
        needs = tuple(cell.steps[kind] for kind in (Quantize.kind, Evaluate.kind, Export.kind))
        return cell.step(
            cls,
            label(cell.cell),
            parts,
            needs=(*needs, *cls.ranking(cell)),
            variant=cell.quantizer,
            images=lambda: cell.evaluated,
        )

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """The digest of the data, the number of compared images, and the execution providers."""
        asked = {"data": data.evaluation if data else "", "options": step.cell.export}
        return super().details(step, suite, data) | asked

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Evaluate the file as the task evaluates any network, then compare the outputs for the first images."""
        import torch

        from zsqbench.export.exporting import outputs_of
        from zsqbench.export.runtime import RuntimeNetwork, open_session, processor, structure_of

        store, teacher = session.store, session.teacher(self)
        quantized = store.read(Quantize.kind, self.needs[Quantize.kind])
        student = cast("fx.GraphModule", self.restored(session, self.prepared(session), quantized)).cpu()
        file = store.read(Export.kind, self.needs[Export.kind]).file(FILE)
        threads = self.settings.threads
        network = RuntimeNetwork(
            open_session(file, self.options.providers, threads=threads),
            structure_of(outputs_of(student, teacher)),
            teacher,
            kept=self.options.check,
        )
        evaluation = evaluations.measure(session, self, reporter, network, teacher)
        found = compare_file(file, student, torch.cat(network.images), teacher, self.options.providers)
        for line in found.lines():
            reporter.note(line)
        content = {
            **evaluations.content(evaluation, self.data),
            "check": found.as_data(),
            # the row also needs the size, because the file may be removed to save space
            "numbers": found.numbers() | {"size_mb": file.stat().st_size / MB},
            "problems": found.problems,
            "processor": processor(),
        }
        if departs := self._accuracy_departs(store, evaluation):
            content["problems"] = [*found.problems, departs]

        def fill(folder: Path) -> None:
            evaluations.write_samples(folder, evaluation)

        session.write(self, reporter, content, fill)

    def _accuracy_departs(self, store: Store, evaluation: Evaluation) -> str | None:
        """Why the accuracy differs from that of the simulation. None: it does not."""
        from zsqbench.statistics import differs

        simulated = evaluations.read_samples(store.read(Evaluate.kind, self.needs[Evaluate.kind]))
        counts = evaluations.discordant(simulated, evaluations.samples_of(evaluation))
        if counts is None or not differs(*counts):
            return None
        return (
            f"its accuracy differs from the simulation: {counts[0]} samples are right only in the simulation, "
            f"{counts[1]} only in the runtime"
        )

    @classmethod
    def row(cls, store: Store, keys: "Mapping[str, str]") -> dict[str, Any]:
        """Metrics of the task in the runtime, percent of equal predictions, size, and layers that run with integers."""
        artifact, simulated = (store.read(kind, keys[kind]) for kind in (cls.kind, Evaluate.kind))
        with artifact.reading():
            measured = evaluations.numbers(artifact.content["metrics"]) | dict(artifact.content["numbers"])
            problems = [str(line) for line in artifact.content["problems"]]
        samples = [evaluations.read_samples(each) for each in (artifact, simulated)]
        equal = evaluations.agreement(*samples)
        if equal:
            measured[EQUAL] = equal["agreement"]
        named = {f"{RUNTIME}/{name}": value for name, value in measured.items()}
        return {"metrics": named} | ({"footnotes": [f"{RUNTIME}: {line}" for line in problems]} if problems else {})

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """All findings of the comparison."""
        key = row.keys.get(cls.kind)
        if key is None or not store.has(cls.kind, key):
            return None
        artifact = store.read(cls.kind, key)
        with artifact.reading():
            lines = [f"ONNX Runtime on {artifact.content['processor']}", *artifact.notes]
        return Shown(cls.kind, artifact.content, "\n".join(lines))
