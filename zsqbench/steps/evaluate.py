"""The evaluate step rebuilds a quantized network from its artifact, and measures it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.errors import one_line
from zsqbench.methods import Pretrained
from zsqbench.reports.results import Result
from zsqbench.steps import evaluations
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.step import Shown, Step, Tracked
from zsqbench.steps.students import StudentJob
from zsqbench.store import Store
from zsqbench.suite import NO_GENERATOR, Cell, Suite

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

PICTURE = "picture.png"

LOGITS = "logits"
"""Clipped values are counted in tensors with this role. Nothing behind these tensors corrects a clipped value."""

CARRIED = ("images", "images_read", "summary")
"""The row needs these fields of the quantize step, because its artifact may be removed to save space."""


class Evaluate(StudentJob):
    """A step that reads the quantized network and the evaluation data. It leaves metrics, samples and a picture."""

    kind: ClassVar[str] = "evaluate"
    final: ClassVar[bool] = True

    data: str
    """Digest of the evaluation data."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step:
        """One step for each quantized network and data."""
        needs = (cell.steps[Quantize.kind], *cls.ranking(cell))
        return cell.step(
            cls,
            label(cell.cell),
            evaluations.identity(cell),
            needs=needs,
            variant=cell.quantizer,
            images=lambda: evaluations.of_student(cell),
        )

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """The identity parts of a student step, and the digest of the data."""
        return super().details(step, suite, data) | {"data": data.evaluation if data else ""}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Rebuild the network, measure it, and let the task draw a picture."""
        from zsqbench.quant import counted_clipping

        quantized = session.store.read(Quantize.kind, self.needs[Quantize.kind])
        student, teacher = self.restored(session, self.prepared(session), quantized), session.teacher(self)
        with counted_clipping(student, LOGITS) as clipping:
            evaluation = evaluations.measure(session, self, reporter, student, teacher)
        picture = self._picture(session, reporter, student, teacher)

        def fill(folder: Path) -> None:
            evaluations.write_samples(folder, evaluation)
            if picture is not None:
                picture.save(folder / PICTURE)

        with quantized.reading():
            carried = {name: quantized.content[name] for name in CARRIED}
        of_student = {"clipped": clipping.shares, "footnotes": quantized.footnotes}
        content = evaluations.content(evaluation, self.data) | carried | of_student
        session.write(self, reporter, content, fill)

    def _picture(
        self, session: "Session", reporter: "Reporter", student: "nn.Module", teacher: Pretrained
    ) -> "Image | None":
        """The picture that the task draws. An error while drawing does not lose the measured values."""
        import torch

        try:
            with torch.no_grad():
                return session.task(self).picture(student, teacher, session.task_context(self, reporter))
        except Exception as error:  # noqa: BLE001 - the drawing of a task may raise anything
            reporter.note(f"there is no picture: {one_line(error)}")
            return None

    @classmethod
    def row(cls, store: Store, keys: Mapping[str, str]) -> dict[str, Any]:
        """The metrics, the machine, which samples were right, and what was quantized."""
        artifact = store.read(cls.kind, keys[cls.kind])
        samples, found = evaluations.read_samples(artifact), artifact.content
        float_samples = evaluations.read_samples(store.read(Baseline.kind, keys[Baseline.kind]))
        with artifact.reading():
            return {
                "metrics": evaluations.numbers(found["metrics"]) | evaluations.agreement(float_samples, samples),
                "data": {
                    "evaluated": int(found["samples"]),
                    "digest": str(found["data"]),
                    "images": _count(found["images"]),
                    "calibrated": _count(found["images_read"]),
                },
                "correct": evaluations.packed(samples),
                "resampled": evaluations.resampled(samples),
                # artifacts of older versions lack these fields
                "clipped": evaluations.numbers(found.get("clipped", {})),
                "footnotes": [str(line) for line in found.get("footnotes", [])],
                "tensors": {name: _number_or_text(value) for name, value in found["summary"].items()},
                "environment": artifact.field("environment", dict),
            }

    @classmethod
    def _find_picture(cls, store: Store, row: Result) -> Path | None:
        """The picture that the task drew of both networks. None: it drew none, or the artifact is not here."""
        key = row.keys.get(cls.kind)
        picture = None if key is None else store.folder(cls.kind, key) / PICTURE
        return picture if picture is not None and picture.is_file() else None

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The path of the picture."""
        picture = cls._find_picture(store, row)
        return None if picture is None else Shown("picture", str(picture), str(picture))

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """The picture."""
        picture = cls._find_picture(store, row)
        return None if picture is None else Tracked(files=[picture])


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _number_or_text(value: Any) -> float | str:
    return value if isinstance(value, int | float) else str(value)


def label(cell: Cell) -> str:
    """The label of steps about a quantized network of a cell."""
    ending = "" if cell.seed is None else f" seed {cell.seed}"
    return f"{cell.model} {cell.generator or NO_GENERATOR} {cell.quantizer} {cell.scheme}{ending}"
