"""Values that papers state, kept with their citations in results/published, to stand beside what is measured here."""

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
"""Says of each source what it is called and how it is cited; its values are in SOURCE.csv."""

DATA = "data.yaml"
"""Says of each data set that papers evaluate on how many images it has, and where it is to be had."""

ValueKey = tuple[str, str, str, str, str]
"""Model, generator, quantizer, scheme, as suites call them, and metric."""


class Value(BaseModel):
    """What a table says of one cell: a line of a source's file. results/published/README.md explains the columns."""

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
    """How the source's method or scheme is known to be another than that of the cell of these names, if it is."""

    @property
    def name(self) -> str:
        """Its place with the data, in the form of a cell's name, without a seed."""
        return f"{self.data}:{self.model}:{self.generator}:{self.quantizer}:{self.scheme}"

    @property
    def is_float(self) -> bool:
        """True if it is of the float network."""
        return self.place == self.float_place

    @property
    def place(self) -> ValueKey:
        """Where it stands."""
        return self.model, self.generator, self.quantizer, self.scheme, self.metric

    @property
    def float_place(self) -> ValueKey:
        """Where the float network stands."""
        return self.model, "none", "fp32", FLOAT.name, self.metric


@dataclass(frozen=True)
class Source:
    """A paper, or the page of a repository."""

    name: str
    citation: str
    values: tuple[Value, ...]
    caveats: tuple[str, ...] = ()
    """Lines that a reader of any of its values has to know."""

    def table(self, table: str) -> tuple[Value, ...]:
        """The values of a table. Raises ZSQBenchError where there is none of this name, and lists those that are."""
        if table not in self.tables:
            raise ZSQBenchError(unknown(f"table of {self.name}", table, self.tables))
        return tuple(value for value in self.values if value.table == table)

    def float_of(self, value: Value) -> float | None:
        """The value of the float network of a value: in the same table, or else in the first that has it."""
        found = [each for each in self.values if each.place == value.float_place]
        same = [each for each in found if each.table == value.table]
        return (same or found)[0].value if found else None

    @property
    def tables(self) -> list[str]:
        """The tables that values are kept of, in their order."""
        return list(dict.fromkeys(value.table for value in self.values))

    def find(self, tables: Iterable[str]) -> dict[ValueKey, dict[str, Any]]:
        """What these tables say, as a result row holds it; where two say something of a cell, the first counts.

        The float network is that of the table, or else the first of the source.
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
    """Where the values are: in a checkout, or in a wheel. Raises ZSQBenchError where there are none."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "papers", package.parent / "results" / "published"):
        if (folder / SOURCES).is_file():
            return folder
    raise ZSQBenchError(f"there are no published values beside {package}: neither papers nor ../results/published")


def read_source(name: str, folder: Path | None = None) -> Source:
    """The source of this name. Raises ZSQBenchError where there is none, or a line of it is no value."""
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
    """All that are evaluated."""
    source: str
    """Where it is to be had."""
    at: str
    """Where tasks look for it, below the data root."""


def read_data_sets(folder: Path | None = None) -> dict[str, DataSet]:
    """The data sets by the names that values have for them."""
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
    """`Table 1a`; what begins with a letter is no table and goes by its own name."""
    return f"Table {table}" if table[:1].isdigit() else table
