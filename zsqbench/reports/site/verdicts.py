"""A column in words: the best methods, the negative control, and the methods that do not beat it."""

from collections.abc import Iterator, Mapping

from zsqbench.reports.suiterows import counted
from zsqbench.reports.tables.axes import Column, ColumnKind, Row, unique
from zsqbench.reports.tables.competition import BELOW_CONTROL, NOT_TOLD
from zsqbench.reports.tables.table import Table
from zsqbench.scheme import FLOAT


def verdict(table: Table, column: Column, names: Mapping[Row, str]) -> str:
    """Sentences on a column of results. `names` are the names of its methods."""
    return " ".join(f"{said}." for said in _sentences(table, column, names))


def columns_of(table: Table) -> list[Column]:
    """The columns of results, without the columns beside them."""
    return [column for column in table.columns if column.kind is ColumnKind.MEASURED]


def ranked(table: Table, column: Column) -> list[Row]:
    """The methods that have a number in a column, the best first."""
    means = table.competition.means
    return sorted((row for row in table.rows if (row, column) in means), key=lambda row: -means[row, column])


def _sentences(table: Table, column: Column, names: Mapping[Row, str]) -> Iterator[str]:
    methods = ranked(table, column)
    if not methods:
        yield "No method has a number here"
    else:
        yield _top(table, column, methods, names)
    if column in table.floats:
        yield f"The float network reaches {table.floats[column]:.2f}"
    yield from _controls(table, column, methods, names)
    yield from _not_done(table, column)


def _top(table: Table, column: Column, methods: list[Row], names: Mapping[Row, str]) -> str:
    """The best methods, or why no method is best."""
    means = table.competition.means
    best = [row for row in methods if (row, column) in table.competition.best]
    if not best:
        return _why_nothing(table, column)
    first = f"{names[best[0]]} ({means[best[0], column]:.2f})"
    if len(best) == 1:
        return f"{first} is best alone{_beside(table, column, methods, best[0])}"
    if len(best) == 2:  # noqa: PLR2004 - both have a name then
        return f"{first} shares the top with {names[best[1]]} ({means[best[1], column]:.2f})"
    return f"{first} shares the top with {len(best) - 1} others"


def _why_nothing(table: Table, column: Column) -> str:
    """Why no method of a column is best."""
    if column.scheme == FLOAT.name:
        return "Nothing is quantized here, so nothing is best"
    if column.model in table.random_models:
        return "Nothing is best of a network with random weights"
    if reasons := _uncompared(table, column):
        return f"Nothing is called best, as methods could not be compared: {'; '.join(reasons)}"
    return "No data-free method is told from the negative controls, and above them"


def _uncompared(table: Table, column: Column) -> list[str]:
    """Why no method of a column was compared. Empty: some were compared."""
    places = table.standings[column].of.values() if column in table.standings else ()
    return [] if any(place.letters for place in places) else unique(place.without for place in places if place.without)


def _beside(table: Table, column: Column, methods: list[Row], best: Row) -> str:
    """How many data-free methods do not differ significantly from the best, but still do not share its place."""
    found = table.standings.get(column)
    others = [row for row in methods if row != best and row.control is None and found and found.tie(row, best)]
    if not others:
        return ""
    why = "not above the negative control, or not compared"
    return f"; {counted(len(others), 'other')} ({why}) cannot be told from it"


def _controls(table: Table, column: Column, methods: list[Row], names: Mapping[Row, str]) -> Iterator[str]:
    """The best negative control, and how many methods do not beat theirs."""
    control = next((row for row in methods if row.control == "negative control"), None)
    if control is None:
        return
    yield f"The negative control reaches {table.competition.means[control, column]:.2f} at most ({names[control]})"
    said = [table.competition.beside_control(row, column) for row in methods]
    below, untold = said.count(BELOW_CONTROL), said.count(NOT_TOLD)
    if below:
        yield f"{counted(below, 'method')} {_are(below)} below the control with the same quantizer"
    if untold:
        yield f"{counted(untold, 'method')} cannot be told from the control with the same quantizer"


def _not_done(table: Table, column: Column) -> Iterator[str]:
    """How many methods have no number, by their status."""
    statuses = [
        entry.status for (_, place), entry in table.entries.items() if place == column and entry.status != "done"
    ]
    for status in dict.fromkeys(statuses):
        yield f"{counted(statuses.count(status), 'method')} {_are(statuses.count(status))} {status}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
