"""One side of a comparison, A or B: the rows that a name of a cell, or an expression over names, selects."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.reports.results import Result
from zsqbench.reports.suiterows import believed, counted, named
from zsqbench.reports.tables.axes import Column, Row, unique
from zsqbench.store import Store
from zsqbench.suite import Cell, select


@dataclass(frozen=True)
class Selected:
    """The rows of one method in each column, its seeds together."""

    name: Literal["A", "B"]
    text: str
    """The expression of the user."""
    folder: Path
    """The folder of its rows."""
    groups: Mapping[Column, Sequence[Result]]
    waiting: Collection[Column]
    """Columns of the suite for which it selects cells but has no row."""

    @classmethod
    def of(
        cls,
        name: Literal["A", "B"],
        text: str,
        folder: Path,
        rows: Sequence[Result],
        without_row: Sequence[Cell],
        store: Store,
    ) -> Self:
        """Select rows of a folder by the name of a cell, or by an expression like that of -k.

        `without_row` are the cells of the suite that have no row there. If artifacts in the store contradict a row, its
        cell counts as failed. Raises ZSQBenchError for an expression that cannot be read or selects no row, and if a
        column has several methods.
        """
        found = [row for row in rows if row.cell == text]
        waiting = [cell for cell in without_row if cell.name == text]
        if not found and not waiting:
            found, waiting = select(rows, text, where=name), select(without_row, text, where=name)
        if not found and waiting:
            cells = named(cell.name for cell in waiting)
            raise ZSQBenchError(f"{name} selects {counted(len(waiting), 'cell')} without a row: {cells}; run the suite")
        if not found:
            known = unique(part for row in rows for part in (row.cell, *row.cell.split(":")))
            hint = did_you_mean(text, known) or "; expected a cell, a part of its name, or an expression as -k takes it"
            raise ZSQBenchError(f"none of {counted(len(rows), 'row')} in {folder} matches {name}, {text!r}{hint}")
        groups = {column: _only(name, column, group) for column, group in _by_column(believed(found, store)).items()}
        places = {Column(cell.task, cell.model, cell.scheme) for cell in waiting}
        return cls(name, text, folder, groups, places.difference(groups))

    @property
    def columns(self) -> set[Column]:
        """The columns with rows, and the columns that should have rows."""
        return {*self.groups, *self.waiting}

    @property
    def cells(self) -> set[str]:
        """The names of its rows."""
        return {row.cell for group in self.groups.values() for row in group}


def place(column: Column) -> str:
    """`digits resnet20 hw/w4a4`."""
    return f"{column.task} {column.model} {column.scheme}"


def _by_column(rows: Sequence[Result]) -> dict[Column, list[Result]]:
    """Rows by task, model and scheme. Unlike in a table, mixed precision is in the column of the scheme."""
    columns: dict[Column, list[Result]] = {}
    for row in rows:
        columns.setdefault(Column(row.task, row.model, row.scheme), []).append(row)
    return columns


def _only(name: str, column: Column, group: Sequence[Result]) -> Sequence[Result]:
    """The rows of the only method in a column. Raises ZSQBenchError with a list if there are several methods."""
    methods = unique(map(Row.of, group))
    if len(methods) > 1:
        listed = "; ".join(" with ".join(label for label in method.labels if label) for method in methods)
        raise ZSQBenchError(f"{name} selects {len(methods)} methods in {place(column)}, expected one: {listed}")
    return group
