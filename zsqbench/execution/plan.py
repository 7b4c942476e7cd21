"""The plan: cells become a DAG of steps; equal steps of different cells are one, because equal inputs hash alike."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from zsqbench.methods import DataFiles
from zsqbench.reports.diagnosis import DIAGNOSTICS_VERSION, diagnose_key
from zsqbench.reports.results import Result, Status
from zsqbench.store import FileDigests, Store, digest_of
from zsqbench.suite import NO_GENERATOR, Cell, Suite, Variant

StepKind = Literal["resolve", "baseline", "generate", "diagnose", "quantize", "evaluate", "oracle"]

LIBRARY_VERSION = "5"
"""Raise it whenever `zsqbench.quant` or `zsqbench.synthesis` computes other numbers: their callers cannot know."""

EVALUATION_VERSION = "2"
"""Raise it when something else is kept of an evaluation: it is made again, and no image and no network is."""


FINAL_STEPS: tuple[StepKind, ...] = ("baseline", "evaluate", "oracle")
"""A cell is done when those of these that it has are."""


MINOR_STEPS: tuple[StepKind, ...] = ("diagnose",)
"""No cell waits for these: they run where no other step could, and what becomes of them is in no row."""


@dataclass(slots=True, eq=False)
class Step:
    """One unit of work: plain data in, one artifact out. Not changed once made; frozen would make planning slower."""

    kind: StepKind
    key: str
    """Hash of all that the step reads."""
    label: str
    needs: tuple["Step", ...]
    cell: Cell
    """The first of the cells that need it: tells the worker which model, generator and scheme are meant."""
    kin: str
    """Hash of the same without seed and scheme: kin take about the same time."""
    seed: int | None = None
    """None where the step does not use it."""
    after: tuple["Step", ...] = ()
    """Steps that have to end well before it starts, although it reads nothing of theirs."""
    quantizer: Variant | None = None
    """What quantizes, of a step about a quantized network: the quantizer of the cell, or one that it starts from."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    status: Literal["done", "failed", "blocked", "interrupted"]
    seconds: float = 0.0
    device: str = ""
    error: str | None = None
    """One line."""
    traceback: str | None = None
    """None where the error is the user's to mend."""
    damaged: str | None = None
    """Key of an artifact that this step needed and that is not what was written."""


@dataclass(frozen=True)
class Progress:
    """How far a running step is."""

    done: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    """Last value of each curve."""


@dataclass(frozen=True)
class ModelFacts:
    """What loading a model told: its identity, and what methods may demand of it."""

    digest: str
    bn: int = 0
    """Number of batch-normalisation layers."""
    classes: int | None = None
    parameters: int = 0
    random_weights: bool = False
    input_size: tuple[int, ...] = ()


Facts = Mapping[tuple[str, str], ModelFacts | Outcome]
"""What is known of each (task, model)."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell with the steps that it needs, or the reason why it has none."""

    cell: Cell
    steps: Mapping[StepKind, Step] = field(default_factory=dict)
    """Those that it waits for."""
    diagnose: Step | None = None
    """Looks at its calibration set, where it has one."""
    status: Status = "done"
    """What becomes of a cell without steps."""
    reason: str | None = None
    traceback: str | None = None

    @property
    def final(self) -> dict[StepKind, Step]:
        """The steps of which its row is made."""
        return {kind: self.steps[kind] for kind in FINAL_STEPS if kind in self.steps}

    @property
    def starts(self) -> dict[str, Step]:
        """The quantize steps that its own goes on from, the nearest first: `start`, `start.start`, ..."""
        starts: dict[str, Step] = {}
        step = self.steps.get("quantize")
        while step is not None:
            step = next((need for need in step.needs if need.kind == "quantize"), None)
            if step is not None:
                starts[".".join(["start"] * (len(starts) + 1))] = step
        return starts

    @property
    def named(self) -> dict[str, Step]:
        """All steps that its row tells of: its own by kind, and those that it starts from."""
        return dict(self.steps) | self.starts

    @property
    def keys(self) -> dict[str, str]:
        """Artifact of each step."""
        return {name: step.key for name, step in self.named.items()}


@dataclass
class Plan:
    """What a run of a suite takes: cells, steps in an order in which each comes after what it needs, what is there."""

    suite: Suite
    store: Store
    cells: list[PlannedCell]
    steps: dict[str, Step]
    cached: set[str]
    """Keys of the steps whose artifact is in the store."""
    rows: Mapping[str, Result] = field(default_factory=dict)
    """Result rows of earlier runs, by cell."""

    def is_finished(self, planned: PlannedCell) -> bool:
        """Whether the row of an earlier run still says what a run would say, and what it was measured from is there."""
        row = self.rows.get(planned.cell.name)
        return (
            row is not None
            and row.status == "done"
            and all(step.key in self.cached for step in planned.final.values())
            and row.keys == planned.keys
            and row.definition == self.suite.definition(planned.cell)
        )

    def to_do(self, planned: Sequence[PlannedCell] | None = None) -> dict[str, Step]:
        """The steps that have to run: those of unfinished cells, and what they need, that are not in the store.

        And last, for each set of any cell that is in the store then, its diagnostics: no set is made for them alone.
        """
        wanted: dict[str, Step] = {}

        def want(step: Step) -> None:
            if step.key in self.cached or step.key in wanted:
                return
            for need in (*step.needs, *step.after):
                want(need)
            wanted[step.key] = step

        for cell in self.cells if planned is None else planned:
            for final in cell.final.values():
                want(final)
        sets = {key for key, step in wanted.items() if step.kind == "generate"} | self.cached
        for step in (cell.diagnose for cell in self.cells):
            if step is not None and sets.issuperset(need.key for need in step.needs):
                want(step)
        return wanted


def resolve_steps(suite: Suite, cells: Sequence[Cell], digests: FileDigests) -> dict[tuple[str, str], Step]:
    """For each (task, model) the step that loads the model once, to learn its identity."""
    steps: dict[tuple[str, str], Step] = {}
    for cell in cells:
        pair = (cell.task, cell.model)
        if pair in steps or cell.reason is not None:
            continue
        model = suite.models[cell.model]
        files = suite.task(cell.task).find_model(model)
        spec = model.model_dump(mode="json", exclude={"name", "file", "weights", "float_accuracy"})
        task = suite.tasks[cell.task]
        origin = {name: digests.file(path) for name, path in files.items()}
        weights = model.weights if model.random_weights else None
        key = digest_of(["resolve", task.identity, spec, weights, origin])
        steps[pair] = Step("resolve", key, f"resolve {cell.model}", (), cell, "")
    return steps


@dataclass(frozen=True)
class Data:
    """The data of a task: where it is, and what identifies it."""

    files: DataFiles
    evaluation: str
    calibration: str | None

    @classmethod
    def of(cls, files: DataFiles, digests: FileDigests) -> "Data":
        """Hash the content of the files (remembered where they are unchanged)."""
        evaluation = digest_of([digests.files(files.evaluation), dict(files.split)])
        calibration = digest_of([digests.files(files.calibration), dict(files.split)]) if files.calibration else None
        return cls(files, evaluation, calibration)


def find_data(suite: Suite, cells: Sequence[Cell], data_root: Path | None, digests: FileDigests) -> dict[str, Data]:
    """The data of each task that a cell needs. Raises ZSQBenchError where it is absent or empty."""
    labels = dict.fromkeys(cell.task for cell in cells if cell.reason is None)
    return {label: Data.of(suite.task(label).find_data(data_root), digests) for label in labels}


def make_plan(
    suite: Suite,
    cells: Sequence[Cell],
    data: Mapping[str, Data],
    facts: Mapping[tuple[str, str], ModelFacts | Outcome],
    store: Store,
    rows: Mapping[str, Result] | None = None,
) -> Plan:
    """Plan these cells. `facts` holds what is known of each (task, model), or why it could not be loaded."""
    planner = _Planner(suite, data, facts)
    planned = [planner.plan(cell) for cell in cells]
    there = {key for kind in get_args(StepKind) if kind != "resolve" for key in store.keys(kind)}
    return Plan(suite, store, planned, planner.steps, there & planner.steps.keys(), rows or {})


class _Planner:
    """Gives every cell its steps, each distinct one once."""

    def __init__(
        self, suite: Suite, data: Mapping[str, Data], facts: Mapping[tuple[str, str], ModelFacts | Outcome]
    ) -> None:
        self.suite = suite
        self.data = data
        self.facts = facts
        self.steps: dict[str, Step] = {}
        self._made: dict[tuple[str, ...], Step] = {}
        self._kin = cache(_hash)
        # What a cell's parts contribute to keys is the same for thousands of cells.
        self.scheme = cache(lambda label: digest_of(suite.schemes[label].model_dump(mode="json", exclude={"name"})))
        self.settings = cache(lambda settings: digest_of([LIBRARY_VERSION, settings.model_dump(mode="json")]))

    def plan(self, cell: Cell) -> PlannedCell:
        if cell.reason is not None:
            return PlannedCell(cell, status="excluded" if cell.excluded else "impossible", reason=cell.reason)
        facts = self.facts[cell.task, cell.model]
        if isinstance(facts, Outcome):
            status: Status = "interrupted" if facts.status == "interrupted" else "failed"
            return PlannedCell(cell, status=status, reason=facts.error, traceback=facts.traceback)
        reason = self._impossible(cell, facts)
        if reason is not None:
            return PlannedCell(cell, status="impossible", reason=reason)
        steps = self._steps(cell, facts.digest)
        return PlannedCell(cell, steps, self._diagnose(cell, steps["generate"]) if "generate" in steps else None)

    def _steps(self, cell: Cell, model: str) -> dict[StepKind, Step]:
        data = self.data[cell.task]
        threads, task = str(cell.settings.threads), self.suite.tasks[cell.task].digest
        measure = (task, data.evaluation, threads, LIBRARY_VERSION, EVALUATION_VERSION)
        settings = self.settings(cell.settings)
        steps: dict[StepKind, Step] = {}
        accuracy = self.suite.models[cell.model].float_accuracy
        claim = () if accuracy is None else (str(accuracy),)
        steps["baseline"] = self._step("baseline", cell, (model, *measure, *claim), cell.model)
        after = (steps["baseline"],) if claim else ()  # nothing is made of a network that is not the one that is meant
        needs: tuple[Step, ...] = ()
        if cell.generator is not None:
            generator = self.suite.generators[cell.generator]
            real = (data.calibration or "", task) if getattr(generator.method, "uses_real_data", False) else ()
            parts = (model, generator.digest, settings, *real)
            label = f"{cell.model} {cell.generator}"
            seed = cell.seed if generator.method.seeded else None
            steps["generate"] = self._step("generate", cell, parts, label, seed=seed, after=after)
            needs = (steps["generate"],)
        quantizer = self.suite.quantizers[cell.quantizer]
        steps["quantize"] = self._quantize(cell, model, quantizer, needs, after)
        label = f"{cell.model} {cell.generator or NO_GENERATOR} {cell.quantizer} {cell.scheme}"
        finals: list[StepKind] = ["evaluate", "oracle"] if quantizer.quantizer.keeps_epochs else ["evaluate"]
        for kind in finals:
            steps[kind] = self._step(kind, cell, measure, label, needs=(steps["quantize"],), quantizer=quantizer)
        return steps

    def _quantize(
        self, cell: Cell, model: str, quantizer: Variant, images: tuple[Step, ...], after: tuple[Step, ...]
    ) -> Step:
        """The quantize step of a cell, or of what that starts from; which needs no images where it reads none."""
        needs = images if quantizer.quantizer.needs_images else ()
        if quantizer.start is not None:
            needs += (self._quantize(cell, model, quantizer.start, images, after),)
        parts = (model, quantizer.digest, self.settings(cell.settings))
        maker = (cell.generator or NO_GENERATOR) if quantizer.quantizer.needs_images else NO_GENERATOR
        label = f"{cell.model} {maker} {quantizer.label} {cell.scheme}"
        seed, scheme = cell.seed if quantizer.method.seeded else None, self.scheme(cell.scheme)
        return self._step("quantize", cell, parts, label, seed, scheme, needs, after, quantizer)

    def _diagnose(self, cell: Cell, generate: Step) -> Step:
        real = (self.data[cell.task].calibration or "", self.suite.tasks[cell.task].digest)
        parts = (*real, str(cell.settings.threads), DIAGNOSTICS_VERSION)  # the network is in the key of the set
        return self._step("diagnose", cell, parts, f"{cell.model} {cell.generator}", needs=(generate,))

    def _step(
        self,
        kind: StepKind,
        cell: Cell,
        parts: tuple[str, ...],
        label: str,
        seed: int | None = None,
        scheme: str = "",
        needs: tuple[Step, ...] = (),
        after: tuple[Step, ...] = (),
        quantizer: Variant | None = None,
    ) -> Step:
        """The step with this identity; its kin may differ in seed and scheme."""
        identity = (kind, *parts, str(seed), scheme, *(need.key for need in needs))
        step = self._made.get(identity)
        if step is None:
            kin = self._kin((kind, *parts, *(need.kin for need in needs)))
            ending = "" if cell.seed is None or kind == "baseline" else f" seed {cell.seed}"
            key = _hash(identity) if kind != "diagnose" else diagnose_key(needs[0].key, _hash(identity))
            step = Step(kind, key, f"{kind} {label}{ending}", needs, cell, kin, seed, after, quantizer)
            self._made[identity] = self.steps[step.key] = step
        return step

    def _impossible(self, cell: Cell, facts: ModelFacts) -> str | None:
        generator = self.suite.generator(cell)
        folders = [folder.resolve() for folder in self.data[cell.task].files.folders]
        methods = [link.method for link in self.suite.quantizers[cell.quantizer].chain]
        for method in methods if generator is None else [generator, *methods]:
            for path in method.input_files().values():
                if any(path.is_relative_to(folder) for folder in folders):
                    return f"{method.name} reads {path}, which is in the data of task {cell.task}"
            if method.needs_bn and not facts.bn:
                return f"{method.name} needs batch normalisation, and {cell.model} has none"
            if method.needs_classes and facts.classes is None:
                return f"{method.name} needs a classifier, and {cell.model} is none"
        if generator is not None and generator.uses_real_data and self.data[cell.task].calibration is None:
            return f"{generator.name} needs real images, and task {cell.task} has none that it does not evaluate"
        return None


def _hash(parts: tuple[str, ...]) -> str:
    """Hash of words and hashes, none of which holds a line break."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def job(suite: Suite, step: Step, data: Mapping[str, Data]) -> dict[str, Any]:
    """All that a worker needs to run a step, as plain data."""
    cell = step.cell
    settings = cell.settings.model_dump(mode="json")
    if step.kind not in ("generate", "quantize"):
        settings = {"threads": cell.settings.threads}  # the others are in no key of these steps
    description: dict[str, Any] = {
        "kind": step.kind,
        "key": step.key,
        "label": step.label,
        "model": suite.models[cell.model].model_dump(mode="json"),
        "task": _told(suite.tasks[cell.task]),
        "settings": settings,
        "seed": step.seed or 0,
        "needs": {need.kind: need.key for need in step.needs},
    }
    uses_set = step.kind == "generate" or (step.kind == "quantize" and "generate" in description["needs"])
    if uses_set and cell.generator is not None:
        description["generator"] = _told(suite.generators[cell.generator])
    if step.quantizer is not None:
        description["quantizer"] = _told(step.quantizer)
        description["prepared_by"] = _told(step.quantizer.chain[-1])
        description["scheme"] = suite.schemes[cell.scheme].model_dump(mode="json")
    if step.kind == "diagnose":
        description |= {"version": DIAGNOSTICS_VERSION, "real": data[cell.task].calibration is not None}
    if step.kind == "generate" or step.quantizer is not None:
        watched = [*data[cell.task].files.folders] if cell.task in data else []
        description["watched"] = [str(folder.resolve()) for folder in watched]
    return description


def _told(variant: Variant) -> dict[str, Any]:
    """A method as a worker makes it."""
    return {"method": variant.method.name, "options": variant.method.options()}
