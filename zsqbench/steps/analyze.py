"""The analyze step looks for the tensors of a quantized network that its error comes from; it tells only people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.reports.results import Result
from zsqbench.reports.tensorerrors import INFINITE, PICTURE, Analysis, Unanalyzed, render_layers, render_summary
from zsqbench.scheme import RankedWeight, TensorError
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning, Data, identity_of
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.sensitivity import Sensitivity
from zsqbench.steps.step import Shown, Step, Tracked
from zsqbench.steps.students import StudentJob
from zsqbench.store import Artifact, FileDigests, Store, reading
from zsqbench.suite import Suite, Variant
from zsqbench.versions import ANALYSIS_VERSION

if TYPE_CHECKING:
    import torch

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

T = TypeVar("T")

IMAGES = 128
"""Most images of a set that errors are measured on."""
RANKED_IMAGES = 32
"""Most images that the sensitivity of weights is measured on, which takes a pass for each weight."""
REAL_SEED = 2**31 - 1
"""Draws the real images: the same for all cells of a network, and other ones than `real` draws for a cell's seed."""

_OF_NETWORK = 32
"""How many characters of its key are those of its quantize step's."""


class Analyze(StudentJob):
    """Reads the quantized and the float network, its calibration set, and real images that are not evaluated.

    Leaves numbers in the manifest, and a picture. Its key begins like that of its quantize step, so that a row, which
    holds the latter, finds it, and both are removed together.
    """

    kind: ClassVar[str] = "analyze"
    background: ClassVar[bool] = True

    real: bool
    """True if the task has images that it does not evaluate."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One for each quantized network and task, where the suite asks for it."""
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
    def key_of(cls, identity: str, needs: tuple[Step, ...]) -> str:
        """Half of it is the quantize step's."""
        return _key(identity, needs[0].key)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """True if there are real images to measure on."""
        return super().details(step, suite, data) | {"real": data is not None and data.calibration is not None}

    @classmethod
    def of_row(cls, session: "Session", row: Result, quantized: Artifact) -> "Analyze":
        """The step that a suite would have asked for, of a cell whose quantized network is there.

        Raises ZSQBenchError where the cell is float, or the data of the task is absent.
        """
        with quantized.reading():
            made = Quantize.model_validate(quantized.field("job", dict))
        if made.scheme.is_float:
            raise ZSQBenchError(f"no tensor of {row.cell} is quantized: its scheme is {made.scheme.name}")
        found = session.provided("task", made.task.method)
        task = session.task(made)
        # only of these: evaluation data is not opened
        calibration = Data.calibration_of(task.find_data(session.config.data_root), FileDigests(session.store))
        keys = {kind: row.keys[kind] for kind in (Quantize.kind, Generate.kind, Sensitivity.kind) if kind in row.keys}
        parts = _parts(calibration, Variant(made.task.method, task, found.plugin).digest, made.settings.threads)
        fields = {name: getattr(made, name) for name in StudentJob.model_fields}
        fields |= {
            "key": _key(identity_of(cls, parts, None, "", keys.values()), quantized.key),
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
            # without the version of matplotlib, so that equal numbers are equal files
            layers_figure(tensors, title).savefig(folder / PICTURE, metadata={"Software": None})

        session.write(self, reporter, content, fill)

    def _images(
        self, session: "Session", reporter: "Reporter"
    ) -> "tuple[torch.Tensor | None, torch.Tensor | None, dict[str, str]]":
        """Calibration images, real ones, and why either is not there."""
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
    def is_expected(cls, row: Result) -> bool:
        """True if there may be an analysis: a row does not say if its suite asks for one."""
        return Quantize.kind in row.keys

    @classmethod
    def find(cls, store: Store, row: Result) -> Analysis | Unanalyzed:
        """The analysis of the quantized network that a row tells of, or why there is none."""
        of = row.keys.get(Quantize.kind)
        if of is None:
            return Unanalyzed("this cell has no quantized network")
        try:
            keys = sorted(key for key in store.keys(cls.kind) if key[:_OF_NETWORK] == of[:_OF_NETWORK])
            found = [artifact for key in keys if _is_current(artifact := store.read(cls.kind, key), row)]
            if found:
                best = found[-1]
                with reading(best.key):
                    return Analysis.of(best.content, best.folder / PICTURE, best.key)
        except CorruptArtifactError as error:
            return Unanalyzed(f"its analysis cannot be read: {error}", damaged=True)
        if failures := store.failures(of[:_OF_NETWORK]):
            return Unanalyzed(f"analyzing it failed: {failures[-1]}")
        return Unanalyzed(f"no analysis in {store.home}; `analyze: true` in the suite, or `show --layers`, makes it")

    @classmethod
    def tell(cls, store: Store, row: Result, what: Callable[[Analysis], T]) -> T | Unanalyzed:
        """Something of the analysis of a row, or why there is none."""
        found = cls.find(store, row)
        if isinstance(found, Unanalyzed):
            return found
        try:
            with reading(found.key):
                return what(found)
        except CorruptArtifactError as error:
            return Unanalyzed(f"its analysis cannot be read: {error}", damaged=True)

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The outputs and the worst tensor, where there is an analysis, or why it failed."""
        found = cls.find(store, row)
        if isinstance(found, Unanalyzed):
            is_failure = found.damaged or store.failures(row.keys.get(Quantize.kind, "none")[:_OF_NETWORK])
            return Shown("layers", {"absent": found.why}, f"error by tensor: {found.why}") if is_failure else None
        return cls._shown(store, row, render_summary)

    @classmethod
    def show_layers(cls, store: Store, row: Result) -> Shown:
        """All tensors."""
        return cls._shown(store, row, render_layers)

    @classmethod
    def _shown(cls, store: Store, row: Result, render: Callable[[Analysis], str]) -> Shown:
        told = cls.tell(store, row, lambda found: (found, render(found)))
        if isinstance(told, Unanalyzed):
            return Shown("layers", {"absent": told.why}, f"error by tensor: {told.why}")
        found, text = told
        return Shown("layers", asdict(found) | {"picture": str(found.picture)}, text)

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """Numbers, all tensors, and the picture."""
        told = cls.tell(store, row, lambda found: (found, found.numbers()))
        if isinstance(told, Unanalyzed):
            return Tracked(unreadable=told.why) if told.damaged else None
        found, numbers = told
        named = {f"sqnr/{name}": value for name, value in numbers.items()}
        return Tracked(named, [found.picture], {"layers.json": asdict(found) | {"picture": PICTURE}})

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """As long as its quantized network."""
        return key[:_OF_NETWORK] in {other[:_OF_NETWORK] for other in kept}


def _parts(calibration: str | None, task: str, threads: int) -> tuple[str, ...]:
    """The parts of its identity besides the steps that it needs; the network is in the key of its quantize step."""
    return (calibration or "", task, str(threads), ANALYSIS_VERSION)


def _key(identity: str, quantize_key: str) -> str:
    return quantize_key[:_OF_NETWORK] + identity[:_OF_NETWORK]


def _is_current(artifact: Artifact, row: Result) -> bool:
    """True for an analysis of this version on the images of the row's own task."""
    own: Mapping[str, Any] = row.methods.get("task", {})
    with artifact.reading():
        task = artifact.manifest["job"]["task"]
        same = all(task[name] == own.get(name) for name in ("method", "options"))
        return same and artifact.content["version"] == ANALYSIS_VERSION


def _with_sensitivity(tensors: Sequence[TensorError], ranked: Sequence[RankedWeight]) -> list[TensorError]:
    """The tensors with what each weight alone does to the outputs; JSON has no infinity."""
    errors = {weight.name: weight.error for weight in ranked}
    found = []
    for tensor in tensors:
        error = errors.get(tensor.name) if tensor.kind == "weight" else None
        if error == float("inf"):
            why = f"{INFINITE}: the outputs are not finite where this weight alone is quantized"
            found.append(replace(tensor, absent={**tensor.absent, "alone": why}))
        else:
            found.append(replace(tensor, alone=error))
    return found
