"""A table of a paper beside measured values: each value with its verdict and the reason."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.reports.published import DataSet, Source, Value, ValueKey
from zsqbench.reports.reproduction.comparability import FLOAT_TOLERANCE, Asked, budget_of, others, others_of_float
from zsqbench.reports.results import Result
from zsqbench.reports.tables.standings import samples_of, values_of
from zsqbench.scheme import FLOAT
from zsqbench.statistics import Distance, distance, distance_of_means
from zsqbench.suite import NO_GENERATOR, Cell, Suite, select

Verdict = Literal["reached", "not reached", "not comparable", "not run"]

NO_SUITE = "no shipped suite says how it was measured, so weights and budgets cannot be compared"

VERDICTS: tuple[Verdict, ...] = ("reached", "not reached", "not comparable", "not run")


@dataclass(frozen=True)
class Measured:
    """The measurement of a value, over the seeds of its rows."""

    mean: float
    deviation: float | None
    """Standard deviation over seeds. None: there is one seed."""
    seeds: tuple[int, ...]
    """The seeds that are done. Empty: nothing uses a seed."""
    images: int | None
    distance: Distance | None
    """The distance from the published value. None: it is a float network, or neither images nor seeds are known."""


@dataclass(frozen=True)
class Reproduced:
    """A published value, and its verdict here."""

    value: Value
    task: str | None
    """The task of the cells that measure it. None: there are no such cells."""
    cells: tuple[str, ...]
    measured: Measured | None
    verdict: Verdict
    why: str
    """Reasons of the verdict. Empty: the value is reached."""

    @property
    def compares(self) -> bool:
        """True if the measured and the published value are comparable."""
        return self.verdict in ("reached", "not reached")

    @property
    def sentence(self) -> str:
        """The verdict with its reason."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


@dataclass(frozen=True)
class Reproduction:
    """A table of a source, or some rows of it."""

    source: Source
    table: str
    paper_suite: str | None
    """The shipped suite for the table."""
    suite: str | None
    """The suite whose rows are used."""
    values: tuple[Reproduced, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """The number of values with each verdict. Verdicts without values are left out."""
        counted = Counter(each.verdict for each in self.values)
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


@dataclass(frozen=True)
class Entry:
    """A published value and the cells of a suite that measure it, one for each seed, of one task."""

    value: Value
    cells: tuple[Cell, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which an expression selects it. A float network is measured together with other cells."""
        return (self.value.name,) if self.value.is_float else (self.value.name, *(cell.name for cell in self.cells))


@dataclass(frozen=True)
class PaperTable:
    """The selected values of a table, the shipped suite for them, and the suite that measures them."""

    source: Source
    table: str
    entries: tuple[Entry, ...]
    paper: Suite | None
    """The unchanged shipped suite for the table."""
    used: Suite | None
    data: Mapping[str, DataSet] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The cells that measure all values, each once, in the order of their suite. Float alone needs only one."""
        wanted = {cell.name for entry in self.entries if not entry.value.is_float for cell in entry.cells}
        for entry in (entry for entry in self.entries if entry.value.is_float):
            runnable = [cell.name for cell in entry.cells if cell.reason is None]
            wanted.update([] if wanted.intersection(runnable) else runnable[:1])
        return [] if self.used is None else [cell for cell in self.used.cells if cell.name in wanted]

    @property
    def data_of_tasks(self) -> dict[str, DataSet]:
        """The evaluation data of the paper, by task of these cells."""
        return {task: self.data[name] for task, name in self._data_names.items() if name in self.data}

    @property
    def budgets(self) -> dict[str, dict[str, Any]]:
        """The budget of each method, by kind and name, and by data set if there are several."""
        names = self._data_names
        found: dict[str, dict[str, Any]] = {}
        for cell in (cell for cell in self.cells if cell.reason is None):
            ending = f" on {names[cell.task]}" if len(set(names.values())) > 1 else ""
            methods = {} if self.used is None else self.used.methods(cell)
            for axis, variant in methods.items():
                if axis != "task":
                    found[f"{axis} {variant.label}{ending}"] = budget_of(variant.method, names[cell.task])
        return found

    @property
    def _data_names(self) -> dict[str, str]:
        return {cell.task: entry.value.data for entry in self.entries for cell in entry.cells}

    def reproduction(self, rows: Iterable[Result], missing: Callable[[Cell], str | None]) -> Reproduction:
        """The verdicts from these rows. `missing` says what a cell lacks here, if anything."""
        by_cell = {row.cell: row for row in rows}
        judge = _Judge(self, by_cell, missing)
        paper, used = (None if suite is None else suite.name for suite in (self.paper, self.used))
        return Reproduction(self.source, self.table, paper, used, tuple(map(judge.judge, self.entries)))


def entries_of(values: Sequence[Value], suite: Suite | None, expression: str | None = None) -> tuple[Entry, ...]:
    """Values with the cells of a suite that have their names. A value with cells of two tasks is there twice.

    The expression is like that of -k, over names of cells, or over `data:model:generator:quantizer:scheme` if there are
    no cells. It selects values with all their seeds. Raises ZSQBenchError if it selects no value.
    """
    entries = [entry for value in values for entry in _entries(value, suite)]
    if expression is None:
        return tuple(entries)
    named = [_Name(name, entry) for entry in entries for name in entry.names]
    chosen = {id(name.entry) for name in select(named, expression, where="ROW")}
    if not chosen:
        known = dict.fromkeys(part for entry in entries for name in entry.names for part in name.split(":"))
        hint = did_you_mean(expression, known) or f"; parts of names are {', '.join(_not_numbers(known))}"
        raise ZSQBenchError(f"none of the {len(values)} values matches ROW {expression!r}{hint}")
    return tuple(entry for entry in entries if id(entry) in chosen)


@dataclass(frozen=True)
class _Name:
    name: str
    entry: Entry


def _not_numbers(parts: Iterable[str]) -> Iterator[str]:
    return (part for part in parts if not part.isdigit() and part != "-")


def _entries(value: Value, suite: Suite | None) -> list[Entry]:
    cells: dict[tuple[object, ...], list[Cell]] = {}
    for cell in suite.cells if suite is not None else ():
        if _stands_at(value, cell, suite):
            cells.setdefault((cell.task, None if value.is_float else cell.settings), []).append(cell)
    return [Entry(value, tuple(group)) for group in cells.values()] or [Entry(value)]


def _stands_at(value: Value, cell: Cell, suite: "Suite | None") -> bool:
    """True for the cells of a value. For a float network, these are all cells that also measure it."""
    if suite is None or cell.model != value.model or suite.task(cell.task).metric != value.metric:
        return False
    return value.is_float or _place(cell, value.metric) == value.place


def _place(cell: Cell, metric: str) -> ValueKey:
    return cell.model, cell.generator or NO_GENERATOR, cell.quantizer, cell.scheme, metric


@dataclass(frozen=True)
class _Judge:
    """Gives each value its verdict."""

    table: PaperTable
    rows: Mapping[str, Result]
    missing: Callable[[Cell], str | None]

    def judge(self, entry: Entry) -> Reproduced:
        """The verdict on a value."""
        rows = [self.rows[cell.name] for cell in entry.cells if cell.name in self.rows]
        done = [row for row in rows if row.status == "done" and row.value is not None]
        if entry.value.is_float:
            return self._of_float(entry, rows)
        task, names = _task(entry), tuple(cell.name for cell in entry.cells)
        if not done:
            return Reproduced(entry.value, task, names, None, "not run", self._why_not_run(entry, rows))
        measured = _measured(done, entry.value)
        return Reproduced(entry.value, task, names, measured, *self._verdict(entry.value, done, measured))

    def _verdict(self, value: Value, done: Sequence[Result], measured: Measured) -> tuple[Verdict, str]:
        lack = self._incomparable(value, done)
        if lack:
            return "not comparable", "; ".join(lack)
        short = value.value - measured.mean
        if measured.distance is None:
            no_interval = "no interval, for nothing is known of single images, and there is one seed"
            return ("reached", "") if short <= 0 else ("not reached", f"by {short:.2f} points ({no_interval})")
        if not measured.distance.falls_short:
            return "reached", ""
        low, high = -measured.distance.high, -measured.distance.low
        return "not reached", f"by {short:.2f} points (interval {low:.2f} to {high:.2f})"

    def _incomparable(self, value: Value, done: Sequence[Result]) -> list[str]:
        """The differences between the measured and the published setting, as far as they can be found."""
        known = [value.differs] if value.differs else []
        asked = self._asked(value)
        if asked is None or self.table.used is None:
            return [*known, NO_SUITE]
        return [*known, *map(str, others(done, asked, self.table.used))]

    def _asked(self, value: Value) -> Asked | None:
        """The cells of the paper's suite for a value. Empty: there is no suite, or it has no such cells."""
        paper = self.table.paper
        if paper is None:
            return None
        found = _entries(value, paper)[0].cells
        full = self.table.source.float_of(value)
        return Asked(value, full, self.table.data.get(value.data), paper, found) if found else None

    def _of_float(self, entry: Entry, rows: Sequence[Result]) -> Reproduced:
        """The verdict on a float network. It is measured on all images, so chance plays no part."""
        value, task, names = entry.value, _task(entry), tuple(cell.name for cell in entry.cells)
        row = next((row for row in rows if _float_of(row) is not None), None)
        if row is None:
            return Reproduced(value, task, names, None, "not run", self._why_not_run(entry, rows))
        reached = _float_of(row) or 0.0
        measured = Measured(reached, None, (), row.data.get("evaluated"), None)
        asked = self._asked(value)
        if asked is None or self.table.used is None:
            return Reproduced(value, task, names, measured, "not comparable", NO_SUITE)
        if lack := others_of_float(row, asked, self.table.used):
            return Reproduced(value, task, names, measured, "not comparable", "; ".join(map(str, lack)))
        short = value.value - reached
        if short > FLOAT_TOLERANCE:
            why = f"by {short:.2f} points, and the same network is within {FLOAT_TOLERANCE}"
            return Reproduced(value, task, names, measured, "not reached", why)
        return Reproduced(value, task, names, measured, "reached", "")

    def _why_not_run(self, entry: Entry, rows: Sequence[Result]) -> str:
        if self.table.used is None:
            return "no shipped suite asks for this table; give --suite FILE"
        if not entry.cells:
            return f"no cell of suite {self.table.used.name} is called so"
        ended = [f"{row.status}: {row.reason}" for row in rows if row.status != "done"]
        reasons = [cell.reason for cell in entry.cells if cell.reason]
        lacks = [lack for cell in entry.cells if (lack := self.missing(cell))]
        return next(iter([*reasons, *ended, *lacks]), "no row yet")


def _task(entry: Entry) -> str | None:
    return entry.cells[0].task if entry.cells else None


def _float_of(row: Result) -> float | None:
    """The accuracy of the float network of a row. A row of fp32 is itself a row of that network."""
    return row.value if row.float_value is None and row.scheme == FLOAT.name else row.float_value


def _measured(done: Sequence[Result], value: Value) -> Measured:
    numbers = [row.value for row in done if row.value is not None]
    samples = samples_of(values_of(done, done[0].data.get("digest")))
    found = (
        distance_of_means(numbers, value.value, value.std)
        if isinstance(samples, str)
        else distance(samples, value.value, value.std)
    )
    return Measured(
        statistics.fmean(numbers),
        statistics.stdev(numbers) if len(numbers) > 1 else None,
        tuple(row.seed for row in done if row.seed is not None),
        done[0].data.get("evaluated"),
        found,
    )
