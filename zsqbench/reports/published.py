"""Values that papers state, with their citations, in results/published. They are shown beside measured values."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.scheme import FLOAT

SOURCES = "sources.yaml"
"""The file with the name and the citation of each source. Values are in SOURCE.csv."""

DATA = "data.yaml"
"""The file with the number of images and the origin of each data set that papers evaluate on."""

ValueKey = tuple[str, str, str, str, str]
"""Model, generator, quantizer and scheme by their names in suites, and metric."""


class Value(BaseModel):
    """The value of a table for one cell, a line of a source's file. results/published/README.md explains columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    data: str
    model: str
    generator: str
    quantizer: str
    scheme: str
    metric: str
    value: float
    std: float | None
    note: str
    differs: str = ""
    """The known difference between the source's method or scheme and that of the cell, if any."""

    @property
    def name(self) -> str:
        """Its place and data, in the form of a cell's name without a seed."""
        return f"{self.data}:{self.model}:{self.generator}:{self.quantizer}:{self.scheme}"

    @property
    def is_float(self) -> bool:
        """True if the value is that of the float network."""
        return self.place == self.float_place

    @property
    def place(self) -> ValueKey:
        """The place of the value."""
        return self.model, self.generator, self.quantizer, self.scheme, self.metric

    @property
    def float_place(self) -> ValueKey:
        """The place of the float network's value."""
        return self.model, "none", "fp32", FLOAT.name, self.metric


@dataclass(frozen=True)
class Source:
    """A paper, or the page of a repository."""

    name: str
    citation: str
    values: tuple[Value, ...]
    caveats: tuple[str, ...] = ()
    """Notes that a reader of any of its values needs."""

    def table(self, table: str) -> tuple[Value, ...]:
        """The values of a table. Raises ZSQBenchError for an unknown name, and lists the tables."""
        if table not in self.tables:
            raise ZSQBenchError(unknown(f"table of {self.name}", table, self.tables))
        return tuple(value for value in self.values if value.table == table)

    def float_of(self, value: Value) -> float | None:
        """The float network's value for a value, from the same table, or else from the first table that has it."""
        found = [each for each in self.values if each.place == value.float_place]
        same = [each for each in found if each.table == value.table]
        return (same or found)[0].value if found else None

    @property
    def tables(self) -> list[str]:
        """The tables with values, in their order."""
        return list(dict.fromkeys(value.table for value in self.values))

    def find(self, tables: Iterable[str]) -> dict[ValueKey, dict[str, Any]]:
        """The values of these tables, in the form of a result row. If two tables have a cell, the first counts.

        The float network is from the same table, or else the first in the source.
        """
        found: dict[ValueKey, dict[str, Any]] = {}
        everywhere = {value.place: value for value in reversed(self.values)}
        for table in tables:
            values = {value.place: value for value in self.values if value.table == table}
            known = everywhere | values
            for place, value in values.items():
                full = known.get(value.float_place)
                told = {
                    "value": value.value,
                    "std": value.std,
                    "float": None if full is None else full.value,
                    "source": f"{self.name}, {_title(table)}",
                    "citation": self.citation,
                    "note": value.note or None,
                }
                found.setdefault(place, {name: each for name, each in told.items() if each is not None})
        return found


def published_folder() -> Path:
    """The folder of the values, in a checkout or a wheel. Raises ZSQBenchError if there is none."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "papers", package.parent / "results" / "published"):
        if (folder / SOURCES).is_file():
            return folder
    raise ZSQBenchError(f"there are no published values beside {package}: neither papers nor ../results/published")


def read_source(name: str, folder: Path | None = None) -> Source:
    """The source with this name. Raises ZSQBenchError if there is none, or if a line is not a valid value."""
    folder = folder or published_folder()
    sources: Mapping[str, Mapping[str, Any]] = yaml.safe_load((folder / SOURCES).read_text(encoding="utf-8"))
    if name not in sources:
        raise ZSQBenchError(unknown("source of published values", name, sources))
    path = folder / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        values = tuple(_value(path, line, row) for line, row in enumerate(csv.DictReader(file), start=2))
    said = sources[name]
    return Source(said["name"], said["citation"], values, tuple(said.get("caveats", ())))


class DataSet(BaseModel):
    """A data set that papers evaluate on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    images: int
    """Number of all evaluation images."""
    source: str
    """The origin of the data set."""
    at: str
    """Its folder below the data root."""


def read_data_sets(folder: Path | None = None) -> dict[str, DataSet]:
    """The data sets by their names in values."""
    text = ((folder or published_folder()) / DATA).read_text(encoding="utf-8")
    return {name: DataSet.model_validate(said) for name, said in yaml.safe_load(text).items()}


def _value(path: Path, line: int, row: Mapping[str, Any]) -> Value:
    try:
        return Value.model_validate({**row, "std": row.get("std") or None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ZSQBenchError(f"{path}:{line}: {where}: {first['msg']}, got {first['input']!r}") from error


def _title(table: str) -> str:
    """`Table 1a`. A name that begins with a letter is not a table and is kept."""
    return f"Table {table}" if table[:1].isdigit() else table
