"""The diagnose step looks at a calibration set, beside real images that are not evaluated; it tells only people."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.diagnosis import FILES, IMAGES, PLOTS, Diagnosis, Undiagnosed, render
from zsqbench.reports.results import Result
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.step import Job, Shown, Step, Tracked
from zsqbench.store import Artifact, Store, reading
from zsqbench.suite import Suite
from zsqbench.versions import DIAGNOSTICS_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

T = TypeVar("T")

REAL_IMAGES = 256
"""Most real images that a calibration set is compared with; a smaller set is compared with as many as it has."""
REAL_SEED = 2**31 - 1
"""Draws the real images: the same for all sets of a network, and other ones than `real` draws for a cell's seed."""

_OF_SET = 32
"""How many characters of its key are those of its set's."""


class Diagnose(Job):
    """Reads the float network, a calibration set and real images; leaves numbers in the manifest, and two pictures.

    Its key begins like that of its set, so that a row, which holds the latter, finds it, and both are removed together.
    """

    kind: ClassVar[str] = "diagnose"
    background: ClassVar[bool] = True

    real: bool
    """True if the task has images that it does not evaluate."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One for each calibration set and task."""
        images = cell.steps.get(Generate.kind)
        if images is None:
            return None
        # the network is in the key of the set
        parts = (cell.data.calibration or "", cell.task, str(cell.cell.settings.threads), DIAGNOSTICS_VERSION)
        label = images.label.partition(" ")[2]
        return cell.step(cls, label, parts, needs=(images,), images=lambda: cell.calibrated)

    @classmethod
    def key_of(cls, identity: str, needs: tuple[Step, ...]) -> str:
        """Half of it is the set's."""
        return needs[0].key[:_OF_SET] + identity[:_OF_SET]

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """True if there are real images to compare with."""
        return {"real": data is not None and data.calibration is not None}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Measure the set and real images alike, and draw both pictures."""
        from zsqbench.reports.plots import GRID_IMAGES, diagnostics_figure, image_grid
        from zsqbench.synthesis import diagnose

        images = Generate.images(session.store, self.needs[Generate.kind])
        teacher, task = session.teacher(self), session.task(self)
        real, why = None, f"task {task.name} has no images that it does not evaluate"
        if self.real:
            count = min(len(images), REAL_IMAGES)
            real = task.calibration_images(count, REAL_SEED, teacher, session.task_context(self, reporter))
        found = diagnose(teacher, images, real, why).as_data()

        def fill(folder: Path) -> None:
            title = self.label.removeprefix(f"{self.kind} ")
            # without the version of matplotlib, so that equal numbers are equal files
            diagnostics_figure(found, title).savefig(folder / PLOTS, metadata={"Software": None})
            channels = teacher.preprocessing.get("channels", "rgb")
            pixels = images.images[:GRID_IMAGES].numpy()
            image_grid(pixels, teacher.mean, teacher.std, teacher.value_range, channels).save(folder / IMAGES)

        session.write(self, reporter, {"version": DIAGNOSTICS_VERSION, **found}, fill)

    @classmethod
    def is_expected(cls, row: Result) -> bool:
        """True if there will be diagnostics, of a row that has a set."""
        return Generate.kind in row.keys

    @classmethod
    def find(cls, store: Store, row: Result) -> Diagnosis | Undiagnosed:
        """The diagnostics of the set that a row was made from, or why there are none."""
        images = row.keys.get(Generate.kind)
        if images is None:
            return Undiagnosed("this cell has none")
        try:
            found = [
                store.read(cls.kind, key) for key in sorted(store.keys(cls.kind)) if key[:_OF_SET] == images[:_OF_SET]
            ]
            if found:
                best = max(found, key=lambda artifact: _fits(artifact, row))
                return Diagnosis(best.content, {name: best.folder / name for name in FILES}, best.key)
        except CorruptArtifactError as error:
            return _unreadable(error)
        failures = store.failures(images[:_OF_SET])
        if failures:
            return Undiagnosed(f"diagnosing it failed, the next run tries again: {failures[-1]}")
        return Undiagnosed(f"no diagnostics in {store.home}; a run of the suite makes them where its images are there")

    @classmethod
    def _tell(cls, store: Store, row: Result, what: Callable[[Diagnosis], T]) -> tuple[Diagnosis, T] | Undiagnosed:
        """The diagnostics of a row with what is told of them, or why there are none."""
        found = cls.find(store, row)
        if isinstance(found, Undiagnosed):
            return found
        try:
            with reading(found.key):
                return found, what(found)
        except CorruptArtifactError as error:
            return _unreadable(error)

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The diagnostics as a small table, or why there are none."""
        told = cls._tell(store, row, render)
        if isinstance(told, Undiagnosed):
            data: dict[str, Any] = {"absent": told.why}
            text = render(told)
        else:
            found, text = told
            data = {**found.data, "files": {name: str(path) for name, path in found.files.items()}}
        return Shown("calibration_set", data, text if cls.is_expected(row) else "")

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """Numbers, and both pictures."""
        told = cls._tell(store, row, Diagnosis.numbers)
        if isinstance(told, Undiagnosed):
            return Tracked(unreadable=told.why) if told.damaged else None
        found, numbers = told
        named = {f"calibration/{name}": value for name, value in numbers.items()}
        return Tracked(named, list(found.files.values()), {"diagnostics.json": dict(found.data)})

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """As long as its set."""
        return key[:_OF_SET] in {other[:_OF_SET] for other in kept}


def _unreadable(error: CorruptArtifactError) -> Undiagnosed:
    return Undiagnosed(f"its diagnostics cannot be read: {error}", damaged=True)


def _fits(artifact: Artifact, row: Result) -> tuple[bool, int]:
    """Two tasks may share a set, and versions may lie side by side: the row's own task and the newest come first."""
    own = row.methods.get("task", {})
    with artifact.reading():
        task, version = artifact.manifest["job"]["task"], int(artifact.content["version"])
        return all(task[name] == own.get(name) for name in ("method", "options")), version
