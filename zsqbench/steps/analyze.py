"""The analyze step finds the tensors that cause the error of a quantized network. Only people read its results."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.reports.results import Result
from zsqbench.reports.tensorerrors import INFINITE, PICTURE, Analysis, render_absent, render_layers, render_summary
from zsqbench.scheme import RankedWeight, TensorError
from zsqbench.steps.companion import REAL_SEED, Companion, companion_key, told, unreadable
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning, Data, identity_of
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.sensitivity import Sensitivity
from zsqbench.steps.step import Job, Shown, Step, Tracked
from zsqbench.steps.students import StudentJob
from zsqbench.store import Artifact, FileDigests, NoArtifact, Store
from zsqbench.suite import Variant
from zsqbench.versions import ANALYSIS_VERSION

if TYPE_CHECKING:
    import torch

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

CALLED = "analysis"

IMAGES = 128
"""Errors are measured on at most so many images of a set."""
RANKED_IMAGES = 32
"""The sensitivity of weights is measured on at most so many images. It takes a pass for each weight."""


class Analyze(Companion, StudentJob):
    """A step that reads the quantized and the float network, the calibration set, and real images outside evaluation.

    It leaves numbers in the manifest, and a picture. It is a companion of the quantized network.
    """

    kind: ClassVar[str] = "analyze"
    about: ClassVar[type[Job]] = Quantize

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each quantized network and task, if the suite asks for it."""
        if not cell.cell.analyze or cell.suite.schemes[cell.cell.scheme].is_float:
            return None
        quantized = cell.steps[Quantize.kind]
        images = [cell.steps[Generate.kind]] if Generate.kind in cell.steps else []
        needs = (quantized, *images, *cls.ranking(cell))
        parts = _parts(cell.data.calibration, cell.task, cell.cell.settings.threads)
        label = quantized.label.partition(" ")[2]
        return cell.step(
            cls,
            label,
            parts,
            needs=needs,
            variant=cell.quantizer,
            images=lambda: IMAGES + min(cell.calibrated or 0, IMAGES),
        )

    @classmethod
    def of_row(cls, session: "Session", row: Result, quantized: Artifact) -> "Analyze":
        """The analyze step of a cell whose quantized network exists, even if the suite did not ask for it.

        Raises ZSQBenchError if the cell is float, or the data of the task is missing.
        """
        with quantized.reading():
            made = Quantize.model_validate(quantized.field("job", dict))
        if made.scheme.is_float:
            raise ZSQBenchError(f"no tensor of {row.cell} is quantized: its scheme is {made.scheme.name}")
        found = session.provided("task", made.task.method)
        task = session.task(made)
        # only these images are hashed: evaluation data is not opened
        calibration = Data.calibration_of(task.find_data(session.config.data_root), FileDigests(session.store))
        keys = {kind: row.keys[kind] for kind in (Quantize.kind, Generate.kind, Sensitivity.kind) if kind in row.keys}
        parts = _parts(calibration, Variant(made.task.method, task, found.plugin).digest, made.settings.threads)
        fields = {name: getattr(made, name) for name in StudentJob.model_fields}
        fields |= {
            "key": companion_key(identity_of(cls, parts, None, "", keys.values()), quantized.key),
            "label": f"{cls.kind} {quantized.label.partition(' ')[2]}",
            "settings": made.settings.model_validate({"threads": made.settings.threads}),
            "seed": 0,
            "needs": keys,
        }
        return cls(**fields, real=calibration is not None)

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Compare the tensors, rank the weights, and draw the picture."""
        from zsqbench.quant import follow_rescaling, measure_errors, rank_weights
        from zsqbench.reports.tensorplot import layers_figure

        teacher = session.teacher(self)
        quantized = session.store.read(Quantize.kind, self.needs[Quantize.kind])
        student = self.restored(session, self.prepared(session), quantized)
        reference = self.prepared(session).to(session.device).eval()
        rescaled = follow_rescaling(reference, student)
        images, real, absent = self._images(session, reporter)
        found = measure_errors(student, reference, images, real, reporter.progress)
        ranked: Sequence[RankedWeight] = ()
        if images is not None and any(tensor.kind == "weight" for tensor in found.tensors):
            first = images[:RANKED_IMAGES]
            scheme = self.student_scheme(session)
            ranked = rank_weights(teacher.module, scheme, teacher.input_size, first, reporter.progress)
        tensors = _with_sensitivity(found.tensors, ranked)
        content = {
            "version": ANALYSIS_VERSION,
            "images": None if images is None else len(images),
            "real": None if real is None else len(real),
            "ranked": min(len(images), RANKED_IMAGES) if images is not None and ranked else None,
            "outputs": found.outputs,
            "outputs_real": found.outputs_real,
            "rescaled": rescaled,
            "absent": {**absent, **found.absent},
            "tensors": [asdict(tensor) for tensor in tensors],
        }

        def fill(folder: Path) -> None:
            title = self.label.removeprefix(f"{self.kind} ")
            # without the version of matplotlib, so that equal numbers give equal files
            layers_figure(tensors, title).savefig(folder / PICTURE, metadata={"Software": None})

        session.write(self, reporter, content, fill)

    def _images(
        self, session: "Session", reporter: "Reporter"
    ) -> "tuple[torch.Tensor | None, torch.Tensor | None, dict[str, str]]":
        """Calibration images, real images, and why either is missing."""
        images, real, absent = None, None, {}
        if Generate.kind in self.needs:
            images = Generate.images(session.store, self.needs[Generate.kind]).images[:IMAGES]
        else:
            absent["images"] = "the cell has no calibration images to measure errors and sensitivity on"
        task = session.task(self)
        if self.real:
            context = session.task_context(self, reporter)
            real = task.calibration_images(IMAGES, REAL_SEED, session.teacher(self), context).images
        else:
            absent["real"] = f"task {task.name} has no images that it does not evaluate"
        return images, real, absent

    @classmethod
    def find(cls, store: Store, row: Result) -> Analysis | NoArtifact:
        """The analysis of a row's quantized network by this version, or why there is none."""
        if not cls.is_expected(row):
            return NoArtifact("this cell has no quantized network")
        try:
            found = [each for each in cls.beside(store, row) if cls.is_of_task(each, row) and _is_current(each)]
            if found:
                best = found[-1]
                with best.reading():
                    return Analysis.of(best.content, best.folder / PICTURE, best.key)
        except CorruptArtifactError as error:
            return unreadable(CALLED, error)
        if failure := cls.failure(store, row):
            return NoArtifact(f"analyzing it failed: {failure}")
        return NoArtifact(f"no analysis in {store.home}; `analyze: true` in the suite, or `show --layers`, makes it")

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The outputs and the worst tensor, or why the analysis failed. None: the suite did not ask for it."""
        found = cls.find(store, row)
        if isinstance(found, NoArtifact) and not found.damaged and cls.failure(store, row) is None:
            return None  # the suite did not ask for it
        return cls._shown(found, render_summary)

    @classmethod
    def show_layers(cls, store: Store, row: Result) -> Shown:
        """All tensors."""
        return cls._shown(cls.find(store, row), render_layers)

    @staticmethod
    def _shown(found: Analysis | NoArtifact, render: Callable[[Analysis], str]) -> Shown:
        shown = told(found, render, CALLED)
        if isinstance(shown, NoArtifact):
            return Shown("layers", {"absent": shown.why}, render_absent(shown))
        analysis, text = shown
        return Shown("layers", asdict(analysis) | {"picture": str(analysis.picture)}, text)

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """Numbers, all tensors, and the picture."""
        shown = told(cls.find(store, row), Analysis.numbers, CALLED)
        if isinstance(shown, NoArtifact):
            return Tracked(unreadable=shown.why) if shown.damaged else None
        found, numbers = shown
        named = {f"sqnr/{name}": value for name, value in numbers.items()}
        return Tracked(named, [found.picture], {"layers.json": asdict(found) | {"picture": PICTURE}})


def _parts(calibration: str | None, task: str, threads: int) -> tuple[str, ...]:
    """The parts of its identity besides the steps that it needs. The key of its quantize step holds the network."""
    return (calibration or "", task, str(threads), ANALYSIS_VERSION)


def _is_current(artifact: Artifact) -> bool:
    with artifact.reading():
        return bool(artifact.content["version"] == ANALYSIS_VERSION)


def _with_sensitivity(tensors: Sequence[TensorError], ranked: Sequence[RankedWeight]) -> list[TensorError]:
    """The tensors, with the sensitivity of each weight. JSON has no infinity, so a reason replaces it."""
    errors = {weight.name: weight.error for weight in ranked}
    found = []
    for tensor in tensors:
        error = errors.get(tensor.name) if tensor.kind == "weight" else None
        if error == float("inf"):
            why = f"{INFINITE}: the outputs are not finite if only this weight is quantized"
            found.append(replace(tensor, absent={**tensor.absent, "alone": why}))
        else:
            found.append(replace(tensor, alone=error))
    return found
