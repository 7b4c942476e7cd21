"""The export_float step writes a float network as an ONNX file. Exported quantized networks are timed beside it."""

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.export import missing
from zsqbench.export.options import ExportOptions
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.step import Job, Step
from zsqbench.suite import Suite
from zsqbench.versions import EXPORT_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

FLOAT_FILE = "float.onnx"


class ExportFloat(Job):
    """A step that reads the float network and leaves the file."""

    kind: ClassVar[str] = "export_float"
    ships: ClassVar[bool] = True

    options: ExportOptions

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each network and form of its input, if the suite asks for files of its quantized copies."""
        options = asked_export(cell)
        if options is None:
            return None
        parts = (cell.facts.digest, options.input, str(options.opset), EXPORT_VERSION)
        return cell.step(cls, cell.cell.model, parts, images=lambda: 1)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """Form of the input, and operator set."""
        return {"options": step.cell.export}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Write it."""
        from zsqbench.export.exporting import Description, export_float

        teacher, made = session.teacher(self), reporter.folder  # before the manifest, which says how long it took
        made.mkdir(parents=True, exist_ok=True)
        export_float(copy.deepcopy(teacher.module), Description(teacher), made / FLOAT_FILE, self.options)

        def move(folder: Path) -> None:
            shutil.move(made / FLOAT_FILE, folder / FLOAT_FILE)

        session.write(self, reporter, {}, move)


def asked_export(cell: CellPlanning) -> ExportOptions | None:
    """How a cell's network is exported. None: the suite does not ask, it is float, or a package is not installed."""
    asked = cell.cell.export
    if asked is None or cell.suite.schemes[cell.cell.scheme].is_float:
        return None
    return asked if missing() is None else None  # last: it looks through folders
