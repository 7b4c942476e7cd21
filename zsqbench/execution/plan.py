"""The plan: cells become a DAG of steps. Equal inputs have equal hashes, so equal steps of cells are one step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zsqbench.errors import ZSQBenchError
from zsqbench.garbage import uncollected
from zsqbench.methods.asking import asking
from zsqbench.reports.results import Result, Status
from zsqbench.scheme import Inspection
from zsqbench.steps import KINDS, CellPlanning, Data, Inspect, Job, NetworkFacts, Outcome, Resolve, Step, StepMaker
from zsqbench.steps.needs import lack_of_attention, lack_of_images, lack_of_map, lack_of_network
from zsqbench.store import FileDigests, Store
from zsqbench.suite import Cell, Suite, Variant

Facts = Mapping[tuple[str, str], NetworkFacts | Outcome]
"""Facts of each (task, model), or why the network could not be loaded."""

Student = tuple[str, str, str, str]
"""Task, model, scheme and quantizer of a cell. They decide which step inspects its student."""

Inspections = Mapping[Student, Inspection | Outcome]
"""Facts of each student, or why it could not be inspected. A student that is not inspected yet is absent."""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell with the steps that it needs, or why it has no steps."""

    cell: Cell
    steps: Mapping[str, Step] = field(default_factory=dict)
    """The steps that it waits for, by kind."""
    background: Mapping[str, Step] = field(default_factory=dict)
    """The steps that it does not wait for."""
    methods: Mapping[str, Variant] = field(default_factory=dict)
    """Its task, quantizer and generator, with their effective options for its network."""
    status: Status = "done"
    """The outcome of a cell without steps."""
    reason: str | None = None
    traceback: str | None = None

    @property
    def final(self) -> dict[str, Step]:
        """The steps from which its row is made."""
        return {kind: step for kind, step in self.steps.items() if step.type.final}

    @property
    def named(self) -> dict[str, Step]:
        """All steps in its row: its own steps by kind, and the steps from which these start."""
        named = dict(self.steps)
        for step in self.steps.values():
            named |= step.type.leading_to(step)
        return named

    @property
    def keys(self) -> dict[str, str]:
        """Artifact of each step in its row."""
        return {name: step.key for name, step in self.named.items()}


@dataclass
class Plan:
    """The work of a run of a suite: cells, steps in an order that respects their needs, and existing artifacts."""

    suite: Suite
    store: Store
    cells: list[PlannedCell]
    steps: dict[str, Step]
    cached: set[str]
    """Keys of the steps whose artifact is in the store."""
    rows: Mapping[str, Result] = field(default_factory=dict)
    """Result rows of earlier runs, by cell."""
    pending: Sequence[str] = ()
    """Networks that no run has loaded yet. Their identity is provisional."""
    uninspected: Sequence[str] = ()
    """Labels of students that are not inspected yet. Their cells may be found to be impossible."""
    _up_to_date: dict[str, bool] = field(init=False, default_factory=dict)
    """Cells whose rows have the same definition and artifacts as now."""

    def is_finished(self, planned: PlannedCell) -> bool:
        """True if the row of an earlier run is still valid, and its artifacts exist."""
        row, name = self.rows.get(planned.cell.name), planned.cell.name
        if row is None or row.status != "done" or not all(step.key in self.cached for step in planned.final.values()):
            return False
        if name not in self._up_to_date:
            self._up_to_date[name] = row.keys == planned.keys and row.definition == self.suite.definition(planned.cell)
        return self._up_to_date[name]

    def to_do(self, planned: Sequence[PlannedCell] | None = None) -> dict[str, Step]:
        """The steps that have to run: those of unfinished cells, and their needs, that are not in the store.

        Last are background steps whose needs are then in the store. No step is run only for background steps.
        """
        wanted: dict[str, Step] = {}

        def want(step: Step) -> None:
            if step.key in self.cached or step.key in wanted:
                return
            for need in (*step.needs, *step.order_only):
                want(need)
            wanted[step.key] = step

        for cell in self.cells if planned is None else planned:
            for final in cell.final.values():
                want(final)
        there = wanted.keys() | self.cached
        for step in (step for cell in self.cells for step in cell.background.values()):
            if there.issuperset(need.key for need in step.needs):
                want(step)
        return wanted


def resolve_steps(suite: Suite, cells: Iterable[Cell], digests: FileDigests) -> dict[tuple[str, str], Step]:
    """For each (task, model) the step that loads the model once, to find its identity."""
    steps: dict[tuple[str, str], Step] = {}
    for cell in cells:
        if cell.reason is None and (cell.task, cell.model) not in steps:
            steps[cell.task, cell.model] = Resolve.plan_network(suite, cell, digests)
    return steps


def inspect_steps(suite: Suite, cells: Iterable[Cell], facts: Facts) -> dict[Student, Step]:
    """For each student of these cells the step that inspects it, if its network could be loaded."""
    steps: dict[Student, Step] = {}
    for cell in cells:
        student, known = student_of(cell), facts.get((cell.task, cell.model))
        if cell.reason is None and isinstance(known, NetworkFacts) and student not in steps:
            step = Inspect.plan_student(suite, cell, known)
            if step is not None:
                steps[student] = step
    return steps


def student_of(cell: Cell) -> Student:
    """The student of a cell."""
    return cell.task, cell.model, cell.scheme, cell.quantizer


def find_data(suite: Suite, cells: Sequence[Cell], data_root: Path | None, digests: FileDigests) -> dict[str, Data]:
    """The data of each task that a cell needs. Raises ZSQBenchError if it is missing or empty."""
    runnable = [cell for cell in cells if cell.reason is None]
    labels = dict.fromkeys(cell.task for cell in runnable)
    data = {}
    for label in labels:
        task = suite.task(label)
        with asking(task, "find_data"):
            data[label] = Data.of(task.find_data(data_root), digests)
    for cell in runnable:
        generator, absent = suite.generator(cell), data[cell.task].files.absent
        if absent is not None and generator is not None and generator.uses_real_data:
            raise ZSQBenchError(absent)
    return data


def make_plan(
    suite: Suite,
    cells: Iterable[Cell],
    data: Mapping[str, Data],
    facts: Facts,
    inspections: Inspections,
    store: Store,
    rows: Mapping[str, Result] | None = None,
) -> Plan:
    """Plan these cells, with the known facts of their networks and students."""
    maker = StepMaker(suite)
    kinds = {of_set: [job for job in KINDS.values() if job.of_set == of_set] for of_set in (True, False)}
    with uncollected():
        planned = [_plan_cell(maker, cell, data, facts, inspections, kinds) for cell in cells]
    there = {key for kind in {step.kind for step in maker.steps.values()} for key in store.keys(kind)}
    return Plan(suite, store, planned, maker.steps, there & maker.steps.keys(), rows or {})


def _plan_cell(
    maker: StepMaker,
    cell: Cell,
    data: Mapping[str, Data],
    facts: Facts,
    inspections: Inspections,
    kinds: Mapping[bool, Sequence[type[Job]]],
) -> PlannedCell:
    """Plan a cell; `kinds` has all kinds of steps by `Job.of_set`."""
    if cell.reason is not None:
        status: Status = "excluded" if cell.excluded else "impossible"
        return PlannedCell(cell, methods=maker.suite.methods(cell), status=status, reason=cell.reason)
    known = facts[cell.task, cell.model]
    inspected = inspections.get(student_of(cell))
    for ended in (known, inspected):
        if isinstance(ended, Outcome):
            status = "interrupted" if ended.status == "interrupted" else "failed"
            return PlannedCell(
                cell, methods=maker.suite.methods(cell), status=status, reason=ended.error, traceback=ended.traceback
            )
    assert isinstance(known, NetworkFacts)  # noqa: S101 - outcomes ended above
    try:
        methods = maker.methods(cell.task, cell.generator, cell.quantizer, cell.scheme, known)
    except ZSQBenchError as error:  # the options may not go together for this network
        return PlannedCell(cell, methods=maker.suite.methods(cell), status="impossible", reason=str(error))
    planning = CellPlanning(maker, cell, known, data[cell.task], methods, maker.settings(cell.settings))
    parts = (cell.task, cell.model, cell.generator, cell.quantizer)
    if parts not in maker.impossible:
        maker.impossible[parts] = _impossible(planning)
    reason = maker.impossible[parts]
    if reason is None and isinstance(inspected, Inspection):
        reason = inspected.blocker or _lack_in(planning, inspected)
    if reason is not None:
        return PlannedCell(cell, methods=methods, status="impossible", reason=reason)
    background: dict[str, Step] = {}
    shared = (cell.task, cell.model, cell.generator, cell.seed, planning.settings)
    if shared in maker.of_sets:
        steps, others = maker.of_sets[shared]
        planning.steps |= steps
        background |= others
    else:
        _add_steps(planning, background, kinds[True])
        maker.of_sets[shared] = dict(planning.steps), dict(background)
    _add_steps(planning, background, kinds[False])
    return PlannedCell(cell, planning.steps, background, methods)


def _lack_in(planning: CellPlanning, found: Inspection) -> str | None:
    """Why a network does not suit the generator or a quantizer of the chain. None: it suits.

    For example, a network has no feature map.
    """
    model = planning.cell.model
    for link in planning.quantizer.chain:
        lack = lack_of_map(link.quantizer, found, model)
        if lack is not None:
            return f"{link.method.name} {lack}"
    generator = planning.suite.generator(planning.cell)
    if generator is None:
        return None
    lack = lack_of_attention(generator, found, planning.facts.input_size, model)
    return None if lack is None else f"{generator.name} {lack}"


def _add_steps(planning: CellPlanning, background: dict[str, Step], kinds: Sequence[type[Job]]) -> None:
    """Plan the steps of these kinds."""
    for job in kinds:
        step = job.plan(planning)
        if step is not None:
            (background if job.background else planning.steps)[job.kind] = step


def _impossible(planning: CellPlanning) -> str | None:
    """Why a cell's methods cannot work with its network and data. None: they can. Scheme and seed do not matter."""
    suite, cell, data = planning.suite, planning.cell, planning.data
    made_by = (suite.generators[cell.generator],) if cell.generator else ()
    for variant in (*made_by, *suite.quantizers[cell.quantizer].chain):
        method = variant.method
        for path in variant.input_files.values():
            if any(path.is_relative_to(folder) for folder in data.watched):
                return f"{method.name} reads {path}, which is in the data of task {cell.task}"
        lack = lack_of_network(method, planning.facts, cell.model)
        if lack is not None:
            return f"{method.name} {lack}"
    generator = suite.generator(cell)
    if generator is not None and generator.uses_real_data and data.calibration is None:
        return f"{generator.name} {lack_of_images(cell.task)}"
    return None
