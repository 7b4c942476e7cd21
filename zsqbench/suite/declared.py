"""The cells of a suite file, as far as they are known without its plugins."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from zsqbench.methods import Settings
from zsqbench.reports.results import Result
from zsqbench.suite.files import parse_suite, settings_of
from zsqbench.suite.schema import Block
from zsqbench.suite.suite import AXES, NO_GENERATOR, Cell, name_of


@dataclass(frozen=True)
class DeclaredBlock:
    """A block of the matrix: the possible values of a cell on each axis, and its settings."""

    values: Mapping[str, frozenset[str | int | None]]
    settings: Settings

    def has(self, row: Result, settings: Settings) -> bool:
        """True if the block has the cell of a row with these settings."""
        return settings == self.settings and all(getattr(row, axis) in self.values[axis] for axis in AXES)

    def cells(self) -> Iterator[Cell]:
        """All cells of the block, each with a seed."""
        for values in product(*(self.values[axis] for axis in AXES)):
            cell = Cell(**dict(zip(AXES, values, strict=True)), settings=self.settings)  # type: ignore[arg-type]
            if cell.seed is not None:
                yield cell


@dataclass(frozen=True)
class DeclaredCells:
    """The cells of a suite file, including excluded and impossible cells.

    Only methods know if they use a seed. So a row may have any of these cells without a seed.
    """

    blocks: Sequence[DeclaredBlock]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read the file. Raises ZSQBenchError for an invalid file or override `a.b=value`."""
        source, file = parse_suite(path, overrides)
        blocks = enumerate(file.matrix)
        return cls([DeclaredBlock(_values(block), settings_of(source, file, index)) for index, block in blocks])

    def have(self, row: Result) -> bool:
        """True if a row is of one of these cells."""
        settings = settings_said(row)
        return settings is not None and any(block.has(row, settings) for block in self.blocks)

    def without(self, rows: Collection[str]) -> list[Cell]:
        """Names of cells without a row among these names. A row without a seed counts for each seed."""
        cells = {cell.name: cell for block in self.blocks for cell in block.cells()}
        return [
            cell
            for name, cell in sorted(cells.items())
            if name not in rows and replace(cell, seed=None).name not in rows
        ]


def settings_said(row: Result) -> Settings | None:
    """The settings of a row's cell. None: name and fields of the row contradict each other."""
    settings = _settings_of(json.dumps(row.settings))
    return settings if settings is not None and name_of(row, settings) == row.cell else None


@lru_cache
def _settings_of(text: str) -> Settings | None:
    """The settings that a row states. Thousands of rows have the same. None: they are not valid settings."""
    try:
        return Settings.model_validate_json(text)
    except ValidationError:
        return None


def _values(block: Block) -> dict[str, frozenset[str | int | None]]:
    values: dict[str, frozenset[str | int | None]] = {axis: frozenset(getattr(block, axis)) for axis in AXES}
    generators = frozenset(None if name == NO_GENERATOR else name for name in block.generator)
    return values | {"generator": generators, "seed": values["seed"] | {None}}
