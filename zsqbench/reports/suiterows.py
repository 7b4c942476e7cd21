"""The rows of a suite: the rows of a file that count, and a warning for each kind of other rows."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.evidence import Evidence
from zsqbench.reports.resultfile import Contents
from zsqbench.reports.results import Result
from zsqbench.store import Store

log = logging.getLogger("zsqbench")

NAMED = 3
"""A warning names at most so many of the rows that are left out."""

CONTRADICTED = "left out %s contradicted by artifacts: %s; a run writes what these say"


@dataclass(frozen=True)
class SuiteRows:
    """The rows of a file, by their relation to a suite."""

    own: list[Result]
    """Rows of cells that the suite has."""
    gone: list[Result]
    """Rows of other cells of the suite."""
    foreign: list[Result]
    """Rows of another suite."""

    @classmethod
    def of(cls, contents: Contents, suite: str, has: Callable[[Result], bool]) -> Self:
        """Sort the rows. `has` is true if the suite has the cell of a row."""
        mine = [row for row in contents.rows if row.suite == suite]
        own = [row for row in mine if has(row)]
        kept = {row.cell for row in own}
        gone = [row for row in mine if row.cell not in kept]
        return cls(own, gone, [row for row in contents.rows if row.suite != suite])

    def warn(self, path: Path, contents: Contents) -> None:
        """Warn of rows that do not count, in one line for each kind."""
        left_out = {
            "row of other suites": [row.suite for row in self.foreign],
            "row of cells that the suite does not have": [row.cell for row in self.gone],
            "row of cells that have one which finished later": [row.cell for row in contents.older],
            "line without a row, which a run removes": [f"line {number}" for number in contents.unreadable],
        }
        for what, names in left_out.items():
            if names:
                log.warning("%s: left out %s: %s", path, counted(len(names), what), named(names))


def believed(rows: Sequence[Result], store: Store) -> list[Result]:
    """The rows. If numbers of a row differ from its artifacts, a row of a failed cell replaces it.

    If the artifacts are not in the store, a row is kept. A warning names the differences.
    """
    evidence = Evidence(store)
    differences: dict[str, str] = {}
    damaged: list[str] = []
    for row in filter(evidence.is_at_hand, rows):
        try:
            difference = evidence.contradiction(row)
            if difference is not None and evidence.is_source(row):
                differences[row.cell] = difference
        except CorruptArtifactError:
            damaged.append(row.cell)
    evidence.agreements.save()
    if differences:
        log.warning(CONTRADICTED, counted(len(differences), "row"), told(differences))
    if damaged:
        text = "could not compare %s with artifacts that are damaged: %s"
        log.warning(text, counted(len(damaged), "row"), named(damaged))
    return [
        row.refused(f"its row was changed after it was measured: {differences[row.cell]}; run the suite again")
        if row.cell in differences
        else row
        for row in rows
    ]


def told(differences: Mapping[str, str]) -> str:
    """The differences of rows from their artifacts, by cell."""
    return named(f"{cell} ({difference})" for cell, difference in differences.items())


def named(names: Iterable[str]) -> str:
    """The first of the different names, and the number of the others."""
    different = list(dict.fromkeys(names))
    others = len(different) - NAMED
    return ", ".join(different[:NAMED]) + (f" and {counted(others, 'other')}" if others > 0 else "")


def counted(number: int, what: str) -> str:
    """`1 row of a cell`, `2 rows of a cell`."""
    noun, space, rest = what.partition(" ")
    return f"{number} {noun}{'' if number == 1 else 's'}{space}{rest}"
