"""Compare two methods on the same images: the difference of B and A, images that flip, and costs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError, in_one_line
from zsqbench.reports.comparison.differences import ClassLoss, OptionDifference, classes_that_lose, options_that_differ
from zsqbench.reports.comparison.selected import Selected, place
from zsqbench.reports.results import Result
from zsqbench.reports.suiterows import NAMED, named
from zsqbench.reports.tables.axes import Column, Row, unique
from zsqbench.reports.tables.figures import find_figures
from zsqbench.reports.tables.standings import samples_of, values_of
from zsqbench.statistics import Difference, Measured, Samples, paired, rows_in_common, verdict
from zsqbench.statistics import compare as compare_values
from zsqbench.steps.baseline import Baseline
from zsqbench.store import Store

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Side:
    """A or B in a column: the method, and the compared rows."""

    name: str
    column: Column
    generator: str
    """The method in the form of the table, with values that are not the default."""
    quantizer: str
    settings: str
    cells: tuple[str, ...]
    mean: float
    """Mean of the metric over the compared seeds."""
    deviation: float | None
    """Standard deviation over these seeds. None: there is only one seed."""
    seconds: float | None
    """Seconds to make the quantized network, without measuring it."""
    size_mb: float | None
    """Size of the weights at their bits, in 10^6 bytes. None: rows do not say it."""


@dataclass(frozen=True)
class Flips:
    """Numbers of images that change from A to B with one seed."""

    seed: int | None
    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True)
class Pair:
    """A and B in one column, or in two columns with the same images."""

    a: Side
    b: Side
    metric: str
    difference: Difference
    """B minus A."""
    seeds: tuple[int, ...]
    """The common seeds. Empty: neither uses seeds."""
    options: tuple[OptionDifference, ...]
    flips: tuple[Flips, ...]
    """One for each seed. Empty: the task does not say which images are right."""
    classes: tuple[ClassLoss, ...]
    no_classes: str | None
    """Why the classes that lose are not known."""
    notes: tuple[str, ...]
    """Notes on seeds that are not compared."""
    margin: float | None = None

    @property
    def place(self) -> str:
        """The column of the comparison, or both columns."""
        if self.a.column == self.b.column:
            return place(self.a.column)
        return f"{place(self.a.column)} (A), {place(self.b.column)} (B)"

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        said = verdict(self.difference, self.margin)
        return f"The difference {said}" if said.startswith("cannot") else f"B is {said}"

    @property
    def passes(self) -> bool | None:
        """True if B is not worse than A by the margin or more, at 5 %. None: there is no margin."""
        return None if self.margin is None else self.difference.narrow[0] > -self.margin

    @property
    def right_to_wrong(self) -> int:
        """Images that only A has right, summed over seeds."""
        return sum(flips.right_to_wrong for flips in self.flips)

    @property
    def wrong_to_right(self) -> int:
        """Images that only B has right, summed over seeds."""
        return sum(flips.wrong_to_right for flips in self.flips)


@dataclass(frozen=True)
class LeftOut:
    """A column that is not compared."""

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Comparison:
    """A and B in each column that both have, and the columns that are not compared."""

    suite: str
    a: str
    """The expressions of the user for A and for B."""
    b: str
    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def failing(self) -> tuple[Pair, ...]:
        """Pairs in which B may be worse than the margin allows."""
        return tuple(pair for pair in self.pairs if pair.passes is False)


def compare_selected(suite: str, a: Selected, b: Selected, store: Store, margin: float | None = None) -> Comparison:
    """Compare the methods of A and B in each common column, or in two columns if each side has only one.

    A margin, in points, is for the gate and the verdict. `store` may have the labels of the images. Raises
    ZSQBenchError for a margin that is not above 0, for rows that both select, and if nothing can be compared. With a
    margin, it also raises if any column cannot be compared, because a missing result must not open the gate.
    """
    if margin is not None and not 0 < margin < math.inf:
        raise ZSQBenchError(f"a margin of {margin:g} points; expected a number above 0")
    if a.folder.resolve() == b.folder.resolve() and (same := sorted(a.cells & b.cells)):
        raise ZSQBenchError(f"A and B both select {named(same)}; expected different rows")
    compared = _columns(a, b)
    if not compared:
        where = " and ".join(f"{side.name} has {named(sorted(map(place, side.columns)))}" for side in (a, b))
        raise ZSQBenchError(f"{where}; two columns that differ are compared only where each side has just one")
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    for columns in compared:
        try:
            pairs.append(_pair(a, b, columns, store, margin))
        except ZSQBenchError as error:
            left_out.append(LeftOut(" and ".join(unique(map(place, columns))), str(error)))
    if not pairs:
        raise ZSQBenchError(f"nothing can be compared: {_all(left_out)}")
    for side, has in zip((a, b), zip(*compared, strict=True), strict=True):
        rest = sorted(map(place, side.columns.difference(has)))
        left_out += [LeftOut(where, f"only {side.name} selects it") for where in rest]
    if margin is not None and left_out:
        raise ZSQBenchError(f"with a margin every column must be compared; leave out what cannot be: {_all(left_out)}")
    return Comparison(suite, a.text, b.text, tuple(pairs), tuple(left_out))


def _columns(a: Selected, b: Selected) -> list[tuple[Column, Column]]:
    """The columns to compare: common columns in the names of A's rows, or two columns if each side has only one."""
    if len(a.columns) == len(b.columns) == 1:
        return list(zip(a.columns, b.columns, strict=True))
    return [(column, column) for column in (*a.groups, *sorted(a.waiting, key=place)) if column in b.columns]


def _all(left_out: Sequence[LeftOut]) -> str:
    more = f"; and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return "; ".join(map(str, left_out[:NAMED])) + more


def _pair(a: Selected, b: Selected, columns: tuple[Column, Column], store: Store, margin: float | None) -> Pair:
    """Compare two sides. Raises ZSQBenchError with the reason if they cannot be compared."""
    of_a, of_b = (_done(side, column) for side, column in zip((a, b), columns, strict=True))
    first, second = of_a[0], of_b[0]
    _check_alike(first, second)
    digest = first.data.get("digest")
    in_a, in_b = (_values(name, rows, digest) for name, rows in (("A", of_a), ("B", of_b)))
    places_a, places_b = rows_in_common(in_a.seeds, in_b.seeds)
    difference = compare_values(in_b, in_a)
    has_seeds, places = (in_a, places_a) if in_a.seeds else (in_b, places_b)
    seeds = tuple(has_seeds.seeds[at] for at in places if has_seeds.seeds)
    used_a, used_b = [of_a[at] for at in places_a], [of_b[at] for at in places_b]
    flips, classes, no_classes = _by_image(in_a, in_b, seeds, [*used_a, *used_b], store)
    return Pair(
        a=_side("A", columns[0], used_a),
        b=_side("B", columns[1], used_b),
        metric=str(first.metric),
        difference=difference,
        seeds=seeds,
        options=options_that_differ(first, second),
        flips=flips,
        classes=classes,
        no_classes=no_classes,
        notes=tuple(
            _unpaired(name, each.seeds, seeds) for name, each in (("A", in_a), ("B", in_b)) if {*each.seeds} - {*seeds}
        ),
        margin=margin,
    )


def _done(side: Selected, column: Column) -> Sequence[Result]:
    """The rows of a side. Raises ZSQBenchError unless all are done."""
    if column not in side.groups:
        raise ZSQBenchError(f"{side.name} has no row there yet; run the suite")
    for row in side.groups[column]:
        if row.status != "done":
            raise ZSQBenchError(
                f"{side.name}'s cell {row.cell} is {row.status}: {in_one_line(row.reason or 'no reason was given')}"
            )
    return side.groups[column]


def _check_alike(a: Result, b: Result) -> None:
    """Raise ZSQBenchError if two rows were not measured in the same way."""
    for what, one, other in (("measured by", a.metric, b.metric), ("evaluated by", _task(a), _task(b))):
        if one != other:
            raise ZSQBenchError(f"A was {what} {one}, and B by {other}; expected the same")
    same = all(
        one is not None and one == other
        for one, other in (
            (a.model_facts.get("digest"), b.model_facts.get("digest")),
            (a.settings.get("threads"), b.settings.get("threads")),
        )
    )
    if same and a.keys.get(Baseline.kind) != b.keys.get(Baseline.kind):
        raise ZSQBenchError(
            "the same float network was measured differently for A and for B: with another version of evaluation, or "
            "another float_accuracy in the suite; run both again"
        )


def _task(row: Result) -> str:
    """Task and version. They decide how images are evaluated."""
    method = row.methods.get("task", {})
    return f"{method.get('method', row.task)}, version {method.get('version', 'unknown')}"


def _values(name: str, rows: Sequence[Result], digest: str | None) -> Measured:
    found = samples_of(values_of(rows, digest))
    if isinstance(found, str):
        raise ZSQBenchError(f"{name}, {rows[0].cell}: {found}")
    return found


def _side(name: str, column: Column, rows: Sequence[Result]) -> Side:
    generator, quantizer, settings = Row.of(rows[0]).labels
    values = [row.value for row in rows if row.value is not None]
    seconds, size = (
        [number for row in rows if (number := figure.of(row)) is not None]
        for figure in find_figures(("seconds", "size"), rows)
    )
    return Side(
        name=name,
        column=column,
        generator=generator,
        quantizer=quantizer,
        settings=settings,
        cells=tuple(row.cell for row in rows),
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        seconds=statistics.fmean(seconds) if seconds else None,
        size_mb=statistics.fmean(size) if size else None,
    )


def _by_image(
    a: Measured, b: Measured, seeds: tuple[int, ...], rows: Sequence[Result], store: Store
) -> tuple[tuple[Flips, ...], tuple[ClassLoss, ...], str | None]:
    """The images that flip, the classes that lose, and why the classes are not known."""
    if not isinstance(b, Samples):
        return (), (), "its task does not say which images are right"
    differences, _ = paired(b, a)
    return _flips(differences, seeds), *classes_that_lose(differences, rows, store)


def _flips(differences: "np.ndarray", seeds: tuple[int, ...]) -> tuple[Flips, ...]:
    """Counts of flips from B minus A, [seeds, images]."""
    each = zip(seeds or (None,), differences, strict=True)
    return tuple(Flips(seed, int((values < 0).sum()), int((values > 0).sum())) for seed, values in each)


def _unpaired(name: str, has: Sequence[int], common: Sequence[int]) -> str:
    rest = [seed for seed in has if seed not in common]
    return f"only {name} has seed{'s' if len(rest) > 1 else ''} {', '.join(map(str, rest))}; not compared"
