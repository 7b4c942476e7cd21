"""A report is made of this: the rows of a suite, the cells without one, and the store that may have artifacts."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.hashing import digest_of
from zsqbench.reports.results import Result
from zsqbench.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 100
"""Characters of a page's name."""


@dataclass(frozen=True)
class Origin:
    """How the suite was asked for: a command that makes a cell again needs all of it."""

    suite: str
    """The file, or the name of a shipped one."""
    home: Path
    results: Path
    data_root: Path | None = None
    overrides: Sequence[str] = ()
    plugins: Sequence[Path] = ()


@dataclass(frozen=True)
class Viewer:
    """Shows people the samples that a task evaluates."""

    image: "Callable[[int], Image]"
    """The sample at a place."""
    classes: Sequence[str]
    """Their names, where the data has such."""
    data: str
    """A digest of the data."""


def shows_nothing(_: Result) -> str:
    """The reason for which a report that is made without the data has no pictures of it."""
    return "the data was not looked for"


@dataclass(frozen=True)
class Source:
    """All that a report is made of."""

    suite: str
    """Its name."""
    rows: Sequence[Result]
    without_row: Sequence[str]
    """Names of cells that the suite has, and that have no row yet."""
    store: Store
    origin: Origin
    viewer: Callable[[Result], Viewer | str] = shows_nothing
    """Shows the samples that a row was evaluated on, or says why it cannot."""

    @cached_property
    def pages(self) -> dict[str, str]:
        """The name of each cell's page, without its folder and its ending."""
        return page_names(row.cell for row in self.rows)


def report_folder(results: Path, suite: str) -> Path:
    """The folder of a suite's report, unless another one is named: beside its rows."""
    return results / f"{suite}.report"


def page_names(cells: Iterable[str]) -> dict[str, str]:
    """A name of a file for each cell: its own, as far as any file system and address takes it, and no other's."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for cell in cells:
        name = slug(cell)
        if len(name) > LONGEST or name.lower() in taken:
            name = f"{name[:LONGEST]}-{digest_of(cell)[:8]}"
        taken.add(name.lower())
        names[cell] = name
    return names


def slug(text: str) -> str:
    """A text with letters, digits, `.`, `_` and `-` alone, which does not begin with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "cell"
