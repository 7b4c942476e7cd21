"""A task and a network: verdicts, the table, and charts of all schemes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from zsqbench.reports.evidence import ReadOnce
from zsqbench.reports.results import Result
from zsqbench.reports.site.charts import (
    MOST_PAIRS,
    MOST_SPREAD,
    PAIRS,
    RESULTS,
    SEEDS,
    Chart,
    Columns,
    Value,
    heat_map,
    pareto,
    significance,
    spread,
)
from zsqbench.reports.site.pages import Grid, Part, rounded
from zsqbench.reports.site.paper import Absent, PaperFigure, paper_figures
from zsqbench.reports.site.verdicts import columns_of, ranked, verdict
from zsqbench.reports.tables.axes import Column, ColumnKind, Name, Row, grouped, names_of
from zsqbench.reports.tables.leaderboard import heads_of, lines_of, notes_of
from zsqbench.reports.tables.standings import find_ties
from zsqbench.reports.tables.table import Table
from zsqbench.reports.tables.tabulation import Layout, build_tables
from zsqbench.scheme import FLOAT

COSTS = {"seconds": "seconds to make the quantized network", "size": "size of the weights (MB)"}
"""The costs for the horizontal axes of charts, in words."""


@dataclass(frozen=True)
class Section:
    """The results of a task and a network, for tables and charts."""

    table: Table
    groups: Mapping[tuple[Row, Column], Sequence[Result]]
    figures: Sequence[PaperFigure | Absent] = ()
    """The figures of papers."""

    @classmethod
    def of(cls, rows: Sequence[Result], home: Path | None) -> "Section":
        """The section of rows of one task and one network. `home` keeps the comparisons of methods."""
        figures = paper_figures(rows, ReadOnce(home)) if home is not None else []
        return cls(build_tables(rows, Layout(columns=tuple(COSTS)), home)[0], grouped(rows), figures)

    @property
    def title(self) -> str:
        """`digits resnet20`."""
        return f"{self.columns[0].task} {self.columns[0].model}"

    @cached_property
    def columns(self) -> list[Column]:
        """The columns of results."""
        return columns_of(self.table)

    @cached_property
    def names(self) -> dict[Row, Name]:
        """The unique name of each method."""
        return names_of(self.table.rows)

    @cached_property
    def methods(self) -> dict[Row, str]:
        """The names in words: `dgh with hptq`."""
        return {row: name.words for row, name in self.names.items()}

    @cached_property
    def verdicts(self) -> list[str]:
        """Each column in words."""
        return [
            f"{column.task}, {column.model}, {column.label}: {verdict(self.table, column, self.methods)}"
            for column in self.columns
        ]

    @cached_property
    def charts(self) -> list[Chart]:
        """All charts, in the order of the page."""
        of_columns = (chart for column in self.columns for chart in self._of_column(column))
        return [*self._of_network(), *of_columns, *(figure.chart for figure in self._papers)]

    @cached_property
    def absent(self) -> dict[str, str]:
        """Why a figure is missing, by its name."""
        return {figure.name: figure.why for figure in self.figures if isinstance(figure, Absent)}

    @property
    def _papers(self) -> list[PaperFigure]:
        return [figure for figure in self.figures if isinstance(figure, PaperFigure)]

    @cached_property
    def data(self) -> dict[str, Columns]:
        """The data of the charts, by name."""
        return {
            self._data("results"): self._results(),
            self._data("seeds"): self._seeds(),
            self._data("pairs"): self._pairs,
            **{figure.chart.data: figure.columns for figure in self._papers},
        }

    def part(self, places: Mapping[str, int]) -> Part:
        """The section as a part of the start page. `places` are the indices of cells in its listing."""
        table = replace(
            self.table, columns=tuple(each for each in self.table.columns if each.kind is not ColumnKind.FIGURE)
        )
        return Part(
            self.title,
            (),
            _grid(table, self.groups, places),
            charts=self.charts,
            notes=[*notes_of(table), *self._lacks()],
        )

    def _lacks(self) -> Iterator[str]:
        """The missing figures of papers, and why."""
        for why in dict.fromkeys(self.absent.values()):
            names = [name.removesuffix(f" {self.title}") for name, reason in self.absent.items() if reason == why]
            yield f"no figure {', '.join(names)}: {why}"

    def _data(self, what: str) -> str:
        return f"{what} {self.title}"

    def _of_network(self) -> Iterator[Chart]:
        """Charts of all schemes together."""
        schemes, where, metric = [column.label for column in self.columns], self.title, self.table.metric
        means = [mean for (_, column), mean in self.table.competition.means.items() if column in self.columns]
        if means:
            middle = (min(means) + max(means)) / 2
            yield heat_map(f"heatmap {where}", where, self._data("results"), schemes, middle, metric)
            title = f"{where}: accuracy against size, all schemes"
            yield pareto(f"pareto-size {where}", title, self._data("results"), "size", COSTS["size"], metric)

    def _of_column(self, column: Column) -> Iterator[Chart]:
        """Charts of one scheme."""
        scheme, metric = column.label, self.table.metric
        where, methods = f"{self.title} {scheme}", ranked(self.table, column)
        if not methods:
            return
        title = f"{where}: accuracy against seconds"
        yield pareto(
            f"pareto-seconds {where}", title, self._data("results"), "seconds", COSTS["seconds"], metric, scheme
        )
        best = [self.methods[row] for row in methods[:MOST_SPREAD]]
        title = f"{where}: spread over seeds{_best(methods, MOST_SPREAD)}"
        yield spread(f"spread {where}", title, self._data("seeds"), scheme, best, metric)
        compared = [row for row in methods if self.table.letters(row, column)]
        if len(compared) > 1:
            best = [self.methods[row] for row in compared[:MOST_PAIRS]]
            title = f"{where}: can two methods be told apart?{_best(compared, MOST_PAIRS)}"
            yield significance(f"significance {where}", title, self._data("pairs"), scheme, best)

    def _results(self) -> Columns:
        """A row for each method in each column."""
        fronts = {cost: self._fronts(cost) for cost in COSTS}
        rows: list[list[Value]] = []
        for (row, column), entry in self.table.entries.items():
            if column.kind is not ColumnKind.MEASURED:
                continue
            place, name = (row, column), self.names[row]
            rows.append(
                [
                    *(name.words, name.generator, name.quantizer, column.label, row.control or ""),
                    *map(rounded, (entry.mean, entry.std, entry.drop)),
                    len(entry.values),
                    rounded(self.table.floats.get(column)),
                    *(rounded(self._cost(row, column, cost)) for cost in COSTS),
                    entry.status if entry.mean is None else f"{entry.mean:.1f}",
                    place in self.table.competition.best,
                    *(place in fronts[cost] for cost in COSTS),
                ]
            )
        return Columns(RESULTS, rows)

    def _cost(self, row: Row, column: Column, cost: str) -> float | None:
        entry = self.table.entries.get((row, replace(column, kind=ColumnKind.FIGURE, figure=cost)))
        return entry.mean if entry else None

    def _fronts(self, cost: str) -> set[tuple[Row, Column]]:
        """The Pareto front, for seconds in each column, and for size over all schemes of the network."""
        parts = [self.columns] if cost == "size" else [[column] for column in self.columns]
        return {place for part in parts for place in self._front(part, cost)}

    def _front(self, columns: Iterable[Column], cost: str) -> Iterator[tuple[Row, Column]]:
        """Data-free methods that no other method beats at the same or lower cost. Controls do not count."""
        means = self.table.competition.means
        found = [
            (price, -means[row, column], (row, column))
            for column in columns
            for row in self.table.rows
            if (row, column) in means
            and row.control is None
            and column.scheme != FLOAT.name
            and (price := self._cost(row, column, cost))
        ]
        reached = -math.inf
        for _, mean, place in sorted(found, key=lambda each: each[:2]):
            if -mean > reached:
                reached = -mean
                yield place

    def _seeds(self) -> Columns:
        """A row for each result with a number."""
        rows = [
            [self.methods[row], column.label, result.seed, rounded(result.value)]
            for (row, column), group in self.groups.items()
            for result in group
            if result.status == "done" and result.value is not None
        ]
        return Columns(SEEDS, rows)

    @cached_property
    def _pairs(self) -> Columns:
        """A row for each pair of the best methods of a column that can be compared."""
        rows: list[list[Value]] = []
        for column, ties in find_ties(self.groups).items():
            shown = set(ranked(self.table, column)[:MOST_PAIRS])
            rows += [
                [column.label, self.methods[first], self.methods[second], float(f"{p:.2g}")]
                for (first, second), p in ties.p.items()
                if first in shown and second in shown
            ]
        return Columns(PAIRS, rows)


def sections(rows: Sequence[Result], home: Path | None) -> list[Section]:
    """A section for each task and network, in the order of the rows."""
    parts: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        parts.setdefault((row.task, row.model), []).append(row)
    return [Section.of(part, home) for part in parts.values()]


def _grid(table: Table, groups: Mapping[tuple[Row, Column], Sequence[Result]], places: Mapping[str, int]) -> Grid:
    """The table of the leaderboard, with a link from each number to the page of its first cell."""
    tops, body = [head[-1:] for head in heads_of(table)], lines_of(table)  # all columns are of one network
    labels = len(tops) - len(table.columns)
    bold, missing, links = [], [], {}
    for down, row in enumerate(table.rows, start=1):
        for across, column in enumerate(table.columns, start=labels):
            entry, place = table.entries.get((row, column)), (row, column)
            if place in table.competition.best:
                bold.append((down, across))
            if entry is not None and entry.mean is None:
                missing.append((down, across))
            if place in groups:
                links[f"{down},{across}"] = places[groups[place][0].cell]
    return Grid(list(zip(*tops, strict=True)), body, labels, bold, links, missing)


def _best(methods: Sequence[Row], most: int) -> str:
    return f" (the best {most} of {len(methods)} methods)" if len(methods) > most else ""
