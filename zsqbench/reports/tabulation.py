"""From result rows to a table: seeds are one entry, with spread, drop, and why others are not done."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.figures import Figure, find_figures
from zsqbench.reports.results import Result
from zsqbench.reports.table import BESIDE, SEVERITY, Column, ColumnKind, Entry, Row, Table, grouped, listed, unique
from zsqbench.reports.tablenotes import caption_of, measured_on, remarks_on, sources_of

NOT_RUN = "not run"
"""This stands in place of a figure that was not measured, for a reason that a footnote gives."""


def build_table(results: Sequence[Result], names: Sequence[str] = ()) -> Table:
    """Group rows by method and column, with a column for each of these figures after one of results.

    Raises ZSQBenchError where there are no rows, and for a figure that none has.
    """
    if not results:
        raise ZSQBenchError("there are no results yet; run the suite first: zsqbench run SUITE")
    figures = find_figures(names, results)
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
    there = {column for _, column in entries}
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
        rows=tuple(unique(row for row, _ in groups)),
        columns=tuple(column for column in unique(columns) if column in there),
        entries=entries,
        floats=_floats(groups) | _float_figures(groups, figures),
        random_models=frozenset(result.model for result in results if result.model_facts.get("random_weights")),
        caption=caption_of(results),
        measured=tuple(measured_on(results)),
        published=tuple(sources_of(results)),
        figures={figure.name: figure for figure in figures},
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
    """The numbers of seeds that are done, or that they were not run, and why; none where nothing is known."""
    done = [result for result in group if result.status == "done"]
    values = tuple(value for result in done if (value := figure.of(result)) is not None)
    reasons = unique(reason for result in done if (reason := figure.why_absent(result)) is not None)
    if not values and not reasons:
        return None
    return Entry(values, (), "done" if values else NOT_RUN, (), remarks=tuple(map(single_line, reasons)))


def _float_figures(
    groups: Mapping[tuple[Row, Column], Sequence[Result]], figures: Sequence[Figure]
) -> dict[Column, float]:
    """The same numbers of the float network; the first row of a column that has one counts."""
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
    """The best epochs of seeds that are done, by the evaluated images; none where no seed was asked for them."""
    found = [(result.oracle_value, result.float_value) for result in group if result.status == "done"]
    values = tuple(value for value, _ in found if value is not None)
    drops = tuple(full - value for value, full in found if value is not None and full is not None)
    return Entry(values, drops, "done", ()) if values else None


def _published(group: Sequence[Result]) -> Entry | None:
    """What a paper says, none where it says nothing; the seeds of a cell hold the same."""
    told = next((result.published for result in group if result.published), None)
    if told is None:
        return None
    drops = (told["float"] - told["value"],) if "float" in told else ()
    notes = (told["note"],) if "note" in told else ()
    return Entry((told["value"],), drops, "done", notes, stated=told.get("std"))


def _floats(groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> dict[Column, float]:
    """What the float network reaches, and what it is published to reach; the first row of a column counts."""
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
