"""The source of a report: the rows of a suite, the cells without a row, and the store, which may have artifacts."""

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
"""The most characters of a page's name."""


@dataclass(frozen=True)
class Origin:
    """How the user named the suite. A command that makes a cell again needs all of these values."""

    suite: str
    """The file, or the name of a shipped suite."""
    home: Path
    results: Path
    data_root: Path | None = None
    overrides: Sequence[str] = ()
    plugins: Sequence[Path] = ()


@dataclass(frozen=True)
class Viewer:
    """Shows the evaluation samples of a task to people."""

    image: "Callable[[int], Image]"
    """The sample with this index."""
    classes: Sequence[str]
    """The names of classes, if the data has them."""
    data: str
    """A digest of the data."""


def shows_nothing(_: Result) -> str:
    """Why a report that is made without the data has no pictures of samples."""
    return "the data was not looked for"


@dataclass(frozen=True)
class Source:
    """The content of a report."""

    suite: str
    """The name of the suite."""
    rows: Sequence[Result]
    without_row: Sequence[str]
    """Names of cells of the suite that have no row yet."""
    store: Store
    origin: Origin
    viewer: Callable[[Result], Viewer | str] = shows_nothing
    """A function that gives the viewer of a row's evaluation samples, or says why it cannot."""

    @cached_property
    def pages(self) -> dict[str, str]:
        """The name of each cell's page, without folder and ending."""
        return page_names(row.cell for row in self.rows)


def report_folder(results: Path, suite: str) -> Path:
    """The default folder of a suite's report: beside its rows."""
    return results / f"{suite}.report"


def page_names(cells: Iterable[str]) -> dict[str, str]:
    """A unique file name for each cell. It is the cell's name as far as file systems and addresses allow it."""
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
    """A text with only letters, digits, `.`, `_` and `-`. It does not begin with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "cell"
