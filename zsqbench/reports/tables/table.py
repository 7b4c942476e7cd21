"""The leaderboard as data: methods by task, model and scheme, and the meanings of marks and bold figures."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from zsqbench.reports.tables.axes import Axis, Column, ColumnKind, Row, unique
from zsqbench.reports.tables.competition import Competition, Place, Standings
from zsqbench.reports.tables.figures import Figure
from zsqbench.statistics import COLUMN_SEEDS

SEVERITY = ("failed", "interrupted", "impossible", "excluded")
"""If the seeds of a table cell have different statuses, it shows the first of these."""


ORACLE = (
    "oracle: the best epoch, chosen on the evaluated images themselves, which nobody without them can do; it is what "
    "released trainers print, and no result"
)
"""The note that explains a column of this kind."""


@dataclass(frozen=True)
class Entry:
    """The entry of a method in a column: done seeds, and why other seeds are not done; or a published value."""

    values: tuple[float, ...]
    drops: tuple[float, ...]
    status: str
    reasons: tuple[str, ...]
    """One line for each distinct reason."""
    calibrated: int | None = None
    remarks: tuple[str, ...] = ()
    """Notes that a reader of the number needs. The number still counts."""
    stated: float | None = None
    """The deviation that a paper states."""

    @cached_property
    def mean(self) -> float | None:
        """Mean over the seeds that are done."""
        return statistics.fmean(self.values) if self.values else None

    @cached_property
    def std(self) -> float | None:
        """Sample standard deviation over the done seeds. None: there is only one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else self.stated

    @cached_property
    def drop(self) -> float | None:
        """Mean loss against the float network."""
        return statistics.fmean(self.drops) if self.drops else None


def compete(
    entries: Mapping[Place, Entry], random_models: frozenset[str], standings: Mapping[Column, Standings]
) -> Competition:
    """The results among the entries of a table, for comparison."""
    results = {place: entry for place, entry in entries.items() if place[1].kind is ColumnKind.MEASURED}
    return Competition(
        {place: round(entry.mean, 2) for place, entry in results.items() if entry.mean is not None},
        frozenset(place for place, entry in results.items() if entry.reasons),
        random_models,
        standings,
    )


@dataclass(frozen=True)
class Table:
    """A part of the leaderboard as data. Every format is made from it."""

    suite: str
    by: Axis
    """The axis on which all columns agree. The title names its value."""
    title: str
    metric: str
    """The metric in words, such as "top-1 accuracy in percent"."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    entries: Mapping[tuple[Row, Column], Entry]
    floats: Mapping[Column, float]
    """The metric of the float network, if it was measured."""
    random_models: frozenset[str]
    caption: str
    """Notes for a reader who sees only the table. The meaning of bold follows them."""
    measured: tuple[str, ...]
    """Notes on metric, data and calibration."""
    published: tuple[str, ...] = ()
    """The sources of published values."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The requested figures, by name."""
    standings: Mapping[Column, Standings] = field(default_factory=dict)
    """The standings of columns in which methods were compared."""

    @cached_property
    def competition(self) -> Competition:
        """The results, for comparison."""
        return compete(self.entries, self.random_models, self.standings)

    @cached_property
    def footnotes(self) -> dict[str, int]:
        """The footnotes of cells, each text once, numbered in reading order."""
        texts = unique(text for row in self.rows for column in self.columns for text in self.remarks(row, column))
        return {text: number for number, text in enumerate(texts, start=1)}

    def remarks(self, row: Row, column: Column) -> tuple[str, ...]:
        """Why seeds did not run, notes on the number, and if it beats its control; or a published value's remark."""
        entry = self.entries.get((row, column))
        if entry is None:
            return ()
        beside = self.competition.beside_control(row, column) if column.kind is ColumnKind.MEASURED else None
        return (*entry.reasons, *entry.remarks, *([beside] if beside else []))

    @property
    def bold(self) -> str:
        """The meaning of bold."""
        which = " that beats the negative control" if self.competition.below_control else ""
        ties = ", and all methods that cannot be told from the best" if self.has_letters else ""
        return f"bold: in each column, the best data-free method{which}{ties}; controls do not compete"

    def letters(self, row: Row, column: Column) -> str:
        """The letters of a result. Empty: it has none."""
        return self.competition.letters(row, column) if column.kind is ColumnKind.MEASURED else ""

    @property
    def has_letters(self) -> bool:
        """True if methods of any column were compared."""
        return any(place.letters for found in self.standings.values() for place in found.of.values())

    @property
    def notes(self) -> list[str]:
        """Notes on the measurement, and the meanings of marks."""
        controls = {row.control for row in self.rows}
        marks = {
            self.bold: self.competition.best,
            "negative control: what every method must beat": "negative control" in controls,
            "positive control: a reference that has more than methods have": "positive control" in controls,
            "real data, not data-free: positive control, calibrated on real images": "real data, not data-free"
            in controls,
            "float control: nothing is quantized, so it must reproduce the float network": "float control" in controls,
            "random weights: the network was never trained, its weights are seeded random numbers": self.random_models,
            ORACLE: any(column.kind is ColumnKind.ORACLE for column in self.columns),
        }
        figures = (figure.note for figure in self.figures.values() if figure.note)
        said = (text for text, occurs in marks.items() if occurs)
        return [*self.measured, *self._statistics(), *said, *figures, *self.published]

    def _statistics(self) -> Iterator[str]:
        """Lines on letters: their meaning, for which seeds they hold, what they can show, and where there are none."""
        if self.has_letters:
            yield (
                "letters: two methods of a column that share a letter cannot be told apart on these images (5 % for "
                "all pairs of the column together, by Holm)"
            )
        if any(found.few_seeds for found in self.standings.values()):
            yield f"letters hold for these seeds only: fewer than {COLUMN_SEEDS} seeds say too little of other seeds"
        points = sorted(found.detectable for found in self.standings.values() if found.detectable is not None)
        if points:
            span = unique([f"{points[0]:.2g}", f"{points[-1]:.2g}"])
            by_column = " (it depends on the column)" if len(span) > 1 else ""
            yield (
                f"a difference of {' to '.join(span)} points{by_column} between two methods alone would be detected in "
                "80 of 100 cases"
            )
        for reason in unique(reason for found in self.standings.values() for reason in found.untold):
            yield f"some methods share a letter because they cannot be compared: {reason}"
        reasons: dict[str, list[str]] = {}
        for column, found in self.standings.items():
            for row, place in found.of.items():
                if place.without:
                    reasons.setdefault(place.without, []).append(
                        f"{' '.join(part for part in self.head(column) if part)}, {row.generator} with {row.quantizer}"
                    )
        for reason, places in reasons.items():
            where = places[0] if len(places) == 1 else f"{len(places)} results"
            yield f"no letter for {where}: {reason}"

    def number(self, column: Column, number: float) -> str:
        """A number of a column in its printed form."""
        return self.figures[column.figure].text(number) if column.figure else f"{number:.2f}"

    def head(self, column: Column) -> tuple[str, ...]:
        """Task, model and scheme in the form of the table, without the one that all columns share."""
        mark = " (random weights)" if column.model in self.random_models else ""
        kind = "" if column.kind is ColumnKind.MEASURED else f" ({column.kind})"
        mixed = f" ({column.mixed})" if column.mixed else ""
        if column.kind is ColumnKind.FIGURE:
            kind = f" {self.figures[column.figure].head}"
        parts = {"task": column.task, "model": column.model + mark, "scheme": column.scheme}
        *others, last = (text for axis, text in parts.items() if axis != self.by)
        return *others, last + mixed + kind
