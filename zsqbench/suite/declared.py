"""The cells of a suite file, as far as it tells them without the plugins that it needs."""

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
    """A block of the matrix: the values that a cell may have on each axis, and its settings."""

    values: Mapping[str, frozenset[str | int | None]]
    settings: Settings

    def has(self, row: Result, settings: Settings) -> bool:
        """True if the cell of a row, which says these settings, is one of its."""
        return settings == self.settings and all(getattr(row, axis) in self.values[axis] for axis in AXES)

    def cells(self) -> Iterator[Cell]:
        """All of its cells, each with a seed."""
        for values in product(*(self.values[axis] for axis in AXES)):
            cell = Cell(**dict(zip(AXES, values, strict=True)), settings=self.settings)  # type: ignore[arg-type]
            if cell.seed is not None:
                yield cell


@dataclass(frozen=True)
class DeclaredCells:
    """The cells of a suite file, excluded and impossible ones, too.

    Only methods know if they use a seed: a row may have each cell without.
    """

    blocks: Sequence[DeclaredBlock]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Raises ZSQBenchError where the file, or an override `a.b=value`, cannot be meant."""
        source, file = parse_suite(path, overrides)
        blocks = enumerate(file.matrix)
        return cls([DeclaredBlock(_values(block), settings_of(source, file, index)) for index, block in blocks])

    def have(self, row: Result) -> bool:
        """True if a row tells of one of them."""
        settings = settings_said(row)
        return settings is not None and any(block.has(row, settings) for block in self.blocks)

    def without(self, rows: Collection[str]) -> list[Cell]:
        """Cells that have no row among these names, neither with their seed nor without one; by name."""
        cells = {cell.name: cell for block in self.blocks for cell in block.cells()}
        return [
            cell
            for name, cell in sorted(cells.items())
            if name not in rows and replace(cell, seed=None).name not in rows
        ]


def settings_said(row: Result) -> Settings | None:
    """The settings of the cell that a row tells of; none where its name and its fields say different things."""
    settings = _settings_of(json.dumps(row.settings))
    return settings if settings is not None and name_of(row, settings) == row.cell else None


@lru_cache
def _settings_of(text: str) -> Settings | None:
    """The settings that a row says, which thousands say alike; none where they are no settings."""
    try:
        return Settings.model_validate_json(text)
    except ValidationError:
        return None


def _values(block: Block) -> dict[str, frozenset[str | int | None]]:
    values: dict[str, frozenset[str | int | None]] = {axis: frozenset(getattr(block, axis)) for axis in AXES}
    generators = frozenset(None if name == NO_GENERATOR else name for name in block.generator)
    return values | {"generator": generators, "seed": values["seed"] | {None}}
