"""The latency step times an exported network beside the float network, while nothing else runs."""

from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.export.options import ExportOptions
from zsqbench.reports.results import Result
from zsqbench.steps.export import RUNTIME, Export, files_to_time
from zsqbench.steps.exportfloat import ExportFloat, asked_export
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.step import Job, Shown, Step
from zsqbench.store import Store
from zsqbench.suite import Suite
from zsqbench.versions import EXPORT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

UNIT = "ms"


class Latency(Job):
    """A step that reads both files. It leaves milliseconds by batch size, and the processor of the measurement."""

    kind: ClassVar[str] = "latency"
    final: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    options: ExportOptions

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each exported network, batch sizes and execution providers."""
        options = asked_export(cell)
        if options is None:
            return None
        needs = (cell.steps[Export.kind], cell.steps[ExportFloat.kind])
        parts = (",".join(map(str, options.batch_sizes)), *options.providers, EXPORT_VERSION)
        return cell.step(
            cls, needs[0].label.partition(" ")[2], parts, needs=needs, images=lambda: sum(options.batch_sizes)
        )

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """Batch sizes and providers."""
        return {"options": step.cell.export}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Time both networks in turns."""
        from zsqbench.export.latency import latency
        from zsqbench.export.runtime import processor

        files = files_to_time(session.store, self.needs)
        timed = latency(files, session.teacher(self).input_size, self.options.batch_sizes, self.options.providers)
        times = {str(batch): {name: vars(found) for name, found in by.items()} for batch, by in timed.items()}
        session.write(self, reporter, {"times": times, "processor": processor()})

    @classmethod
    def row(cls, store: Store, keys: "Mapping[str, str]") -> dict[str, Any]:
        """The median and the 95th percentile of both. The names for batch size 1 have no suffix."""
        artifact = store.read(cls.kind, keys[cls.kind])
        named: dict[str, float] = {}
        with artifact.reading():
            for batch, by in artifact.content["times"].items():
                ending = f"_{UNIT}" if batch == "1" else f"_{UNIT}_batch{batch}"
                for file, found in by.items():
                    start = "" if file == "quantized" else f"{file}_"
                    named |= {f"{RUNTIME}/{start}{name}{ending}": float(value) for name, value in found.items()}
        return {"metrics": named}

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """One line for each batch size."""
        key = row.keys.get(cls.kind)
        if key is None or not store.has(cls.kind, key):
            return None
        artifact = store.read(cls.kind, key)
        with artifact.reading():
            content = artifact.content
            lines = [
                f"batch size {batch}, one thread: {by['quantized']['p50']:.2f} ms (95 of 100 within "
                f"{by['quantized']['p95']:.2f}), float {by['float']['p50']:.2f} ms ({by['float']['p95']:.2f}): "
                f"{_compared(by['quantized']['p50'], by['float']['p50'])}"
                for batch, by in content["times"].items()
            ]
        return Shown(cls.kind, content, "\n".join([*lines, f"on {content['processor']}"]))


def _compared(quantized: float, plain: float) -> str:
    faster = plain / quantized
    return f"{faster:.2f} x faster" if faster >= 1 else f"{1 / faster:.2f} x SLOWER than float"
