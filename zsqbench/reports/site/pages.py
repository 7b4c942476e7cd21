"""A page as data. page.js shows every page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zsqbench.reports.site.charts import CONFIG, Chart, Columns, Value

PICTURES = "pictures"
"""The folder of all pictures, beside that of the cells' pages."""


def rounded(value: float | None) -> float | None:
    """A number for the data of a page: four decimals, and no negative zero."""
    return None if value is None else round(value, 4) + 0.0


@dataclass(frozen=True)
class Grid:
    """A table."""

    heads: Sequence[Sequence[str]]
    """Lines of heads."""
    rows: Sequence[Sequence[Value]]
    labels: int = 1
    """Number of first columns that are text. The others are numbers, aligned to the right."""
    bold: Sequence[tuple[int, int]] = ()
    """Row and column of bold cells."""
    links: Mapping[str, int] = field(default_factory=dict)
    """The cell to which a text at `row,column` links, by its index in the listing of the page."""
    missing: Sequence[tuple[int, int]] = ()
    """Row and column of texts that replace a number."""


@dataclass(frozen=True)
class Listing:
    """A long table with search, sort and filter."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Value]]
    numbers: Mapping[int, int]
    """Decimals of each column of numbers."""
    choices: Sequence[int]
    """Columns with few different texts. A reader can filter by them."""
    pages: Mapping[int, str] = field(default_factory=dict)
    """The pages of rows, if their names differ from the first column as a file name: see `slug`."""


@dataclass(frozen=True)
class Picture:
    """A picture, and its path for the page."""

    name: str
    """The words below it."""
    file: str
    save: Callable[[Path], object]
    """The function that writes it to a path."""

    def as_data(self) -> dict[str, str]:
        """The data for the page."""
        return {"name": self.name, "file": self.file}


@dataclass(frozen=True)
class Part:
    """A part of a page."""

    title: str
    lines: Sequence[str] = ()
    """Statements."""
    grid: Grid | None = None
    listing: Listing | None = None
    text: str = ""
    """Text whose line breaks and spaces are kept."""
    pictures: Sequence[Picture] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    """Small print below."""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing below its title."""
        return not any(value for name, value in vars(self).items() if name != "title")

    def as_data(self) -> dict[str, object]:
        """Plain data without empty fields."""
        found: dict[str, object] = {
            "title": self.title,
            "lines": self.lines,
            "grid": self.grid and vars(self.grid),
            "listing": self.listing and vars(self.listing),
            "text": self.text,
            "pictures": [each.as_data() for each in self.pictures],
            "charts": [vars(each) for each in self.charts],
            "notes": self.notes,
        }
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Page:
    """A page of the report."""

    title: str
    lead: Sequence[str]
    """Text that is also shown without JavaScript."""
    parts: Sequence[Part]
    data: Mapping[str, Columns] = field(default_factory=dict)
    """The data of its charts, by name."""
    back: Sequence[tuple[str, str]] = ()
    """Links above the title: text and page."""

    def as_data(self) -> dict[str, object]:
        """Plain data for page.js."""
        return {
            "title": self.title,
            "lead": self.lead,
            "parts": [part.as_data() for part in self.parts],
            "data": {name: columns.as_data() for name, columns in self.data.items()},
            "back": self.back,
            "config": CONFIG,
        }
