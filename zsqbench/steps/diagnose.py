"""The diagnose step compares a calibration set with real images outside evaluation. Only people read its results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.diagnosis import ATTENTION, FILES, IMAGES, PLOTS, Diagnosis, render
from zsqbench.reports.results import Result
from zsqbench.steps.companion import REAL_SEED, Companion, told, unreadable
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning
from zsqbench.steps.step import Job, Shown, Step, Tracked
from zsqbench.store import Artifact, NoArtifact, Store
from zsqbench.versions import DIAGNOSTICS_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session
    from zsqbench.methods import CalibrationSet, Pretrained
    from zsqbench.reports.plots import Looks, PixelSpace
    from zsqbench.synthesis import ImageStatistics

CALLED = "diagnostics"

REAL_IMAGES = 256
"""The most real images for a comparison. A smaller set is compared with as many real images as it has itself."""


class Diagnose(Companion):
    """A step that reads the float network, a calibration set and real images. It leaves numbers and pictures.

    The numbers are in the manifest. The step is a companion of the set.
    """

    kind: ClassVar[str] = "diagnose"
    about: ClassVar[type[Job]] = Generate
    of_set: ClassVar[bool] = True

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each calibration set and task."""
        images = cell.steps.get(Generate.kind)
        if images is None:
            return None
        # the key of the set holds the network
        parts = (cell.data.calibration or "", cell.task, str(cell.cell.settings.threads), DIAGNOSTICS_VERSION)
        label = images.label.partition(" ")[2]
        return cell.step(cls, label, parts, needs=(images,), images=lambda: cell.calibrated)

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Measure the set and the real images in the same way, and draw the pictures."""
        from zsqbench.methods import open_attention
        from zsqbench.reports import plots
        from zsqbench.synthesis import diagnose

        images = Generate.images(session.store, self.needs[Generate.kind])
        teacher, task = session.teacher(self), session.task(self)
        real, why = None, f"task {task.name} has no images that it does not evaluate"
        if self.real:
            count = min(len(images), REAL_IMAGES)
            real = task.calibration_images(count, REAL_SEED, teacher, session.task_context(self, reporter))
        diagnosed = diagnose(teacher, images, real, why, open_attention(teacher))
        found = diagnosed.as_data()
        title = self.label.removeprefix(f"{self.kind} ")

        def fill(folder: Path) -> None:
            # without the version of matplotlib, so that equal numbers give equal files
            plots.diagnostics_figure(found, title).savefig(folder / PLOTS, metadata={"Software": None})
            grid = plots.image_grid(images.images[: plots.GRID_IMAGES].numpy(), _space(teacher))
            grid.save(folder / IMAGES)
            if looks := _looks(teacher, (images, diagnosed.set), (real, diagnosed.real)):
                figure = plots.attention_figure(looks, f"{title}: attention of the last block")
                figure.savefig(folder / ATTENTION, metadata={"Software": None})

        session.write(self, reporter, {"version": DIAGNOSTICS_VERSION, **found}, fill)

    @classmethod
    def find(cls, store: Store, row: Result) -> Diagnosis | NoArtifact:
        """The diagnostics of a row's calibration set, or why there are none. The newest come first."""
        if not cls.is_expected(row):
            return NoArtifact("this cell has no calibration set")
        try:
            if found := cls.beside(store, row):
                best = max(found, key=lambda artifact: (cls.is_of_task(artifact, row), _version(artifact)))
                names = [*FILES, *(name for name in (ATTENTION,) if name in best.field("files", dict))]
                return Diagnosis(best.content, {name: best.folder / name for name in names}, best.key)
        except CorruptArtifactError as error:
            return unreadable(CALLED, error)
        if failure := cls.failure(store, row):
            return NoArtifact(f"diagnosing it failed; the next run tries again: {failure}")
        return NoArtifact(
            f"no diagnostics in {store.home}; a run of the suite makes them if its images are still there"
        )

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The diagnostics as a small table, or why there are none."""
        shown = told(cls.find(store, row), render, CALLED)
        if isinstance(shown, NoArtifact):
            data: dict[str, Any] = {"absent": shown.why}
            text = render(shown)
        else:
            found, text = shown
            data = {**found.data, "files": {name: str(path) for name, path in found.files.items()}}
        return Shown("calibration_set", data, text if cls.is_expected(row) else "")

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """Numbers, and the pictures."""
        shown = told(cls.find(store, row), Diagnosis.numbers, CALLED)
        if isinstance(shown, NoArtifact):
            return Tracked(unreadable=shown.why) if shown.damaged else None
        found, numbers = shown
        named = {f"calibration/{name}": value for name, value in numbers.items()}
        return Tracked(named, list(found.files.values()), {"diagnostics.json": dict(found.data)})


def _space(teacher: "Pretrained") -> "PixelSpace":
    from zsqbench.reports.plots import PixelSpace

    return PixelSpace(teacher.mean, teacher.std, teacher.value_range, teacher.preprocessing.get("channels", "rgb"))


def _looks(
    teacher: "Pretrained",
    made: "tuple[CalibrationSet, ImageStatistics]",
    real: "tuple[CalibrationSet | None, ImageStatistics | None]",
) -> "list[Looks]":
    """Images with their attention maps, of the set and of real images, as far as there are maps."""
    from zsqbench.reports.plots import Looks

    found = []
    for heading, (images, statistics) in (("calibration set", made), ("real images", real)):
        if images is not None and statistics is not None and statistics.attention_maps is not None:
            maps, by = statistics.attention_maps.maps.numpy(), statistics.attention_maps.by
            shown = _space(teacher).viewable(images.images[: len(maps)].numpy())
            found.append(Looks(f"{heading}, by the {by}", shown, maps))
    return found


def _version(artifact: Artifact) -> int:
    with artifact.reading():
        return int(artifact.content["version"])
