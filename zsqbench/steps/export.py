"""The export step writes a quantized network as an ONNX file of integers, with a script that runs it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.export import missing
from zsqbench.export.options import ExportOptions
from zsqbench.reports.results import Result
from zsqbench.steps.evaluate import label
from zsqbench.steps.exportfloat import FLOAT_FILE, ExportFloat, asked_export
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.step import Shown, Step, Tracked
from zsqbench.steps.students import StudentJob
from zsqbench.store import Store
from zsqbench.suite import Cell, Suite
from zsqbench.versions import EXPORT_VERSION

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session
    from zsqbench.export.comparison import Check
    from zsqbench.export.exporting import Exported
    from zsqbench.methods import Pretrained

FILE, SCRIPT = "model.onnx", "model.py"

RUNTIME = "onnxruntime"
"""The group of metrics of exported files."""


class Export(StudentJob):
    """A step that reads the quantized network. It leaves the file, the script, and which layers run with integers."""

    kind: ClassVar[str] = "export"
    ships: ClassVar[bool] = True

    options: ExportOptions
    classes: tuple[str, ...] = ()
    """Names of the classes."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each quantized network and content of the file, if the suite asks for it."""
        options = asked_export(cell)
        if options is None:
            return None
        parts = (options.weights, options.input, str(options.opset), EXPORT_VERSION)
        needs = (cell.steps[Quantize.kind], *cls.ranking(cell))
        return cell.step(cls, label(cell.cell), parts, needs=needs, variant=cell.quantizer, images=lambda: 1)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """The options of the file, and names of classes."""
        classes = tuple(data.files.classes) if data else ()
        return super().details(step, suite, data) | {"options": step.cell.export, "classes": classes}

    @classmethod
    def not_run(cls, cell: Cell) -> dict[str, str]:
        """The package that is not installed."""
        lack = missing() if cell.export is not None else None
        return {} if lack is None else {RUNTIME: f"not run: {lack}"}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Write it."""
        from zsqbench.export.structure import expected_structure

        quantized = session.store.read(Quantize.kind, self.needs[Quantize.kind])
        student: Any = self.restored(session, self.prepared(session), quantized)
        made = reporter.folder  # the manifest describes the file, so the file is made first
        made.mkdir(parents=True, exist_ok=True)
        exported = write_student(
            student, session.teacher(self), made / FILE, self.options, self.classes, {"cell": self.label}
        )
        for note in exported.notes:
            reporter.note(note)
        structure = expected_structure(exported.path)
        content = {"size_mb": exported.size_mb, "layers": [asdict(layer) for layer in structure.layers]}

        def move(folder: Path) -> None:
            for name in (FILE, SCRIPT):
                shutil.move(made / name, folder / name)

        session.write(self, reporter, content, move)

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The path of the file."""
        path = file_of(store, row)
        return None if path is None else Shown(cls.kind, str(path), f"{path} (run {SCRIPT} beside it on an image)")

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """File and script."""
        path = file_of(store, row)
        return None if path is None else Tracked(files=[path, path.with_name(SCRIPT)])


def file_of(store: Store, row: Result) -> Path | None:
    """The exported file of a row. None: the row has no file, or the file is not here."""
    key = row.keys.get(Export.kind)
    path = None if key is None else store.folder(Export.kind, key) / FILE
    return path if path is not None and path.is_file() else None


def write_student(
    student: "fx.GraphModule",
    teacher: "Pretrained",
    path: Path,
    options: ExportOptions,
    classes: Sequence[str],
    origin: Mapping[str, str],
) -> "Exported":
    """Write file and script. Raises ZSQBenchError if the network cannot be written, or the place not written to."""
    from zsqbench.export.exporting import Description, export_student
    from zsqbench.export.script import write_script

    names = classes if len(classes) == teacher.classes else ()
    exported = export_student(student, Description(teacher, names, origin), path, options)
    write_script(path, teacher.preprocessing)
    return exported


def compare_file(
    path: Path, student: "fx.GraphModule", images: "torch.Tensor", teacher: "Pretrained", providers: Sequence[str]
) -> "Check":
    """Compare a file with its student, on images in the network's space."""
    from zsqbench.export.comparison import check
    from zsqbench.export.integers import with_integer_biases

    return check(path, student, with_integer_biases(student), images, teacher, providers)


def files_to_time(store: Store, needs: Mapping[str, str]) -> dict[str, Path]:
    """The exported file of a quantized network, and that of the float network."""
    quantized = store.read(Export.kind, needs[Export.kind])
    plain = store.read(ExportFloat.kind, needs[ExportFloat.kind])
    return {"quantized": quantized.file(FILE), "float": plain.file(FLOAT_FILE)}
