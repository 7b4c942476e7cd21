"""Make tables from result rows. All seeds form one entry, with spread, drop, and why some are not done."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.reports.results import Result
from zsqbench.reports.tables.axes import BESIDE, Axis, Column, ColumnKind, Row, grouped, listed, unique
from zsqbench.reports.tables.figures import RECOVERED, Figure, find_figures
from zsqbench.reports.tables.notes import caption_of, measured_on, metrics_of, remarks_on, sources_of
from zsqbench.reports.tables.recovery import recovered
from zsqbench.reports.tables.standings import find_standings
from zsqbench.reports.tables.table import SEVERITY, Entry, Table, compete

NOT_RUN = "not run"
"""The text that replaces a figure that was not measured. A footnote gives the reason."""


@dataclass(frozen=True)
class Layout:
    """A reader's wishes for the leaderboard."""

    columns: Sequence[str] = ()
    """Figures beside results: metrics, `seconds`, `memory`, `size` or `recovered`."""
    by: Axis = "task"
    """The axis: one table for each of its values."""
    metric: str | None = None
    """The metric to show instead of the main metric of each task, if rows have it."""
    sort: str | None = None
    """Part of a column's head. Methods are sorted by their results in this column, the best first."""


PLAIN = Layout()


def build_tables(results: Sequence[Result], layout: Layout = PLAIN, home: Path | None = None) -> list[Table]:
    """A table for each task, or for each model or scheme. `home` keeps the comparisons of methods.

    Raises ZSQBenchError if there are no rows, and for a figure, a metric or a column to sort by that no row has.
    """
    if not results:
        raise ZSQBenchError("there are no results yet; run the suite first: zsqbench run SUITE")
    figures = find_figures(layout.columns, results)
    if layout.metric is not None:
        results = _measured_by(layout.metric, results)
    parts: dict[str, list[Result]] = {}
    for result in results:
        parts.setdefault(getattr(result, layout.by), []).append(result)
    tables = [_table(part, layout.by, title, figures, home) for title, part in parts.items()]
    return tables if layout.sort is None else _sorted(tables, layout.sort)


def _measured_by(metric: str, results: Sequence[Result]) -> list[Result]:
    """Rows that show another metric. Done rows without this metric are left out."""
    known = {name for result in results for name in result.metrics}
    if known and metric not in known:
        raise ZSQBenchError(unknown("metric", metric, known, "--metric"))
    return [
        result.model_copy(update={"metric": metric})
        for result in results
        if result.status != "done" or metric in result.metrics
    ]


def _sorted(tables: Sequence[Table], sort: str) -> list[Table]:
    """Tables whose methods are sorted by the first column of results whose head has this part, if there is one."""
    sorted_ = [_sorted_by(sort, table) for table in tables]
    if not any(sorted_):
        heads = unique(" ".join(table.head(column)) for table in tables for column in table.columns)
        raise ZSQBenchError(unknown("column", sort, heads, "--sort"))
    return [ordered or table for ordered, table in zip(sorted_, tables, strict=True)]


def _sorted_by(sort: str, table: Table) -> Table | None:
    column = next((column for column in table.columns if sort in " ".join(table.head(column))), None)
    if column is None:
        return None

    def reached(row: Row) -> float:
        entry = table.entries.get((row, column))
        return math.inf if entry is None or entry.mean is None else -entry.mean

    return replace(table, rows=tuple(sorted(table.rows, key=reached)))


def _table(results: Sequence[Result], by: Axis, title: str, figures: Sequence[Figure], home: Path | None) -> Table:
    """Group rows by method and column, with a column for each figure after one of results."""
    groups = grouped(results)
    entries: dict[tuple[Row, Column], Entry] = {}
    for (row, column), group in groups.items():
        entries[row, column] = _entry(group)
        for kind, entry in zip(BESIDE, (_oracle(group), _published(group)), strict=True):
            if entry is not None:
                entries[row, replace(column, kind=kind)] = entry
        for figure in figures:
            if (found := _figures(figure, group)) is not None:
                entries[row, _column(column, figure)] = found
    random_models = frozenset(result.model for result in results if result.model_facts.get("random_weights"))
    standings = find_standings(groups, home)
    if any(figure.name == RECOVERED for figure in figures):
        entries |= recovered(compete(entries, random_models, standings), entries)
    there = {column for _, column in entries}
    if not any(
        result.status == "done" for result in results
    ):  # so that the requested column is visible before any row is done
        there |= {_column(column, figure) for _, column in groups for figure in figures}
    columns = [
        each
        for _, column in groups
        for each in (
            column,
            *(replace(column, kind=kind) for kind in BESIDE),
            *(_column(column, figure) for figure in figures),
        )
    ]
    return Table(
        suite=listed(result.suite for result in results),
        by=by,
        title=title,
        metric=metrics_of(results),
        rows=tuple(unique(row for row, _ in groups)),
        columns=tuple(column for column in unique(columns) if column in there),
        entries=entries,
        floats=_floats(groups) | _float_figures(groups, figures),
        random_models=random_models,
        caption=caption_of(results),
        measured=tuple(measured_on(results, groups)),
        published=tuple(sources_of(results)),
        figures={figure.name: figure for figure in figures},
        standings=standings,
    )


def _entry(group: Sequence[Result]) -> Entry:
    done = [result for result in group if result.status == "done"]
    rest = [(result.status, single_line(result.reason)) for result in group if result.status != "done"]
    share = {what: f"{rest.count(what)} of {len(group)} seeds " if done else "" for what in rest}
    worst = min((status for status, _ in rest), key=SEVERITY.index, default="done")
    return Entry(
        values=tuple(result.value for result in done if result.value is not None),
        drops=tuple(result.drop for result in done if result.drop is not None),
        status="done" if done else worst,
        reasons=tuple(f"{share[what]}{what[0]}: {what[1]}" for what in unique(rest)),
        calibrated=next((int(n) for result in group if (n := result.data.get("calibrated")) is not None), None),
        remarks=tuple(remarks_on(done)),
    )


def _figures(figure: Figure, group: Sequence[Result]) -> Entry | None:
    """The numbers of done seeds, or that they were not run, and why. None: nothing is known."""
    done = [result for result in group if result.status == "done"]
    values = tuple(value for result in done if (value := figure.of(result)) is not None)
    reasons = unique(reason for result in done if (reason := figure.why_absent(result)) is not None)
    if not values and not reasons:
        return None
    return Entry(values, (), "done" if values else NOT_RUN, (), remarks=tuple(map(single_line, reasons)))


def _float_figures(
    groups: Mapping[tuple[Row, Column], Sequence[Result]], figures: Sequence[Figure]
) -> dict[Column, float]:
    """The numbers of the float network. The first row of a column that has one counts."""
    floats: dict[Column, float] = {}
    for (_, column), group in groups.items():
        for figure in figures:
            value = next((value for result in group if (value := figure.of_float(result)) is not None), None)
            if value is not None:
                floats.setdefault(_column(column, figure), value)
    return floats


def _column(column: Column, figure: Figure) -> Column:
    """The column of a figure beside one of results."""
    return replace(column, kind=ColumnKind.FIGURE, figure=figure.name)


def _oracle(group: Sequence[Result]) -> Entry | None:
    """The best epochs of done seeds, by the evaluation images. None: no seed kept epochs."""
    found = [(result.oracle_value, result.float_value) for result in group if result.status == "done"]
    values = tuple(value for value, _ in found if value is not None)
    drops = tuple(full - value for value, full in found if value is not None and full is not None)
    return Entry(values, drops, "done", ()) if values else None


def _published(group: Sequence[Result]) -> Entry | None:
    """The published value. None: there is none. All seeds of a cell have the same."""
    told = next((result.published for result in group if result.published), None)
    if told is None:
        return None
    drops = (told["float"] - told["value"],) if "float" in told else ()
    notes = (told["note"],) if "note" in told else ()
    return Entry((told["value"],), drops, "done", notes, stated=told.get("std"))


def _floats(groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> dict[Column, float]:
    """The measured and the published metric of the float network. The first row of a column counts."""
    floats: dict[Column, float] = {}
    for column, result in ((column, result) for (_, column), group in groups.items() for result in group):
        if result.float_value is not None:
            floats.setdefault(column, result.float_value)
        if "float" in result.published:
            floats.setdefault(replace(column, kind=ColumnKind.PUBLISHED), result.published["float"])
    return floats


def single_line(text: str | None) -> str:
    """A reason on one line."""
    return " ".join(text.split()) if text else "no reason was given"
