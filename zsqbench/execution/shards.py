"""Shards: the cells of a suite, split among machines that do not communicate.

Every machine finds the same parts, because they depend only on counted work. They never depend on seconds, on cached
artifacts of a home, or on the packages of an extra.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import Self

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.steps import Step
from zsqbench.steps.generate import Generate
from zsqbench.suite import Cell

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """One of several parts of a suite, in the form of the command line: `3/8`."""

    number: int
    """From 1."""
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that a text such as `3/8` names. Raises ZSQBenchError for any other text."""
        found = _SHARD.fullmatch(text)
        if found is None:
            raise ZSQBenchError(f"cannot read --shard {text!r}; expected for example 3/8, the third of eight parts")
        number, of = int(found[1]), int(found[2])
        if not 1 <= number <= of:
            numbers = f"there are 1/{of} to {of}/{of}" if of else "give at least one part, as 1/1"
            raise ZSQBenchError(f"there is no --shard {text}: {numbers}")
        return cls(number, of)

    def part(self, plan: Plan) -> "Part":
        """The cells of a plan in this shard. The plan must know all networks."""
        parts = split(plan, self.of)
        return parts[self.number - 1] if self.number <= len(parts) else Part()

    def __str__(self) -> str:
        """The form of the command line, such as `3/8`."""
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Part:
    """The cells of a shard."""

    cells: Sequence[Cell] = ()
    """In the order of the suite."""
    work: float = 0.0
    """Operations of all its steps. A step that several of its cells need counts once."""
    share: float = 0.0
    """Its part of the work of all shards, from 0 to 1."""
    largest: float = 0.0
    """The part of the work that the largest shard has."""


@dataclass(frozen=True)
class _Group:
    """Cells that share a calibration set, or one cell without a set."""

    cells: tuple[PlannedCell, ...]

    @cached_property
    def name(self) -> str:
        return min(planned.cell.name for planned in self.cells)

    @cached_property
    def steps(self) -> dict[str, Step]:
        """The steps that count, by key."""
        return {step.key: step for planned in self.cells for step in _counted(planned)}


def split(plan: Plan, count: int) -> list[Part]:
    """Split the cells of a plan into so many shards, or into fewer if there are fewer groups of cells.

    Cells that share a generate step stay together, so that no set is made twice. The cost of a group is the number of
    operations of its steps: operations of the network for one image, times the images that pass through it. Groups are
    taken by falling cost. Each goes to the shard that then has the least work. A step that the shard already has costs
    nothing. Ties between groups are broken by the name of the first cell, ties between shards by their number. So the
    largest shard has at most the mean work of all shards plus the work of the largest group.
    """
    groups = _groups(plan)
    prices = _prices({key: step for group in groups for key, step in group.steps.items()})
    cost = {group.name: fsum(prices[key] for key in group.steps) for group in groups}
    shared = {key for key, number in Counter(key for group in groups for key in group.steps).items() if number > 1}
    loads = [0.0] * min(count, len(groups))
    members: list[list[PlannedCell]] = [[] for _ in loads]
    there: list[set[str]] = [set() for _ in loads]
    for group in sorted(groups, key=lambda group: (-cost[group.name], group.name)):
        common = shared & group.steps.keys()
        after = [
            load + max(cost[group.name] - fsum(prices[key] for key in common & have), 0.0)
            for load, have in zip(loads, there, strict=True)
        ]
        at = min(range(len(loads)), key=after.__getitem__)
        loads[at] = after[at]
        members[at] += group.cells
        there[at] |= common
    total, most = fsum(loads) or 1.0, max(loads, default=0.0)
    order = {planned.cell.name: place for place, planned in enumerate(plan.cells)}
    return [
        Part(sorted((each.cell for each in cells), key=lambda cell: order[cell.name]), load, load / total, most / total)
        for cells, load in zip(members, loads, strict=True)
    ]


def _groups(plan: Plan) -> list[_Group]:
    groups: dict[str, list[PlannedCell]] = {}
    for planned in plan.cells:
        made = planned.steps.get(Generate.kind)
        groups.setdefault(planned.cell.name if made is None else made.key, []).append(planned)
    return [_Group(tuple(cells)) for cells in groups.values()]


def _prices(steps: dict[str, Step]) -> dict[str, float]:
    """Operations of each step, by key. An unknown number is the median of its kind, or else of all steps."""
    known: dict[str, list[float]] = {}
    for step in steps.values():
        if step.work is not None:
            known.setdefault(step.kind, []).append(step.work.images * step.work.cost)
    usual = {kind: statistics.median(prices) for kind, prices in known.items()}
    other = statistics.median(usual.values()) if usual else 1.0
    return {
        key: usual.get(step.kind, other) if step.work is None else step.work.images * step.work.cost
        for key, step in steps.items()
    }


def _counted(planned: PlannedCell) -> Iterator[Step]:
    """The steps of a cell that every machine plans. Steps of exported files need an extra, so they do not count."""
    seen: set[str] = set()

    def walk(step: Step) -> Iterator[Step]:
        if step.key not in seen:
            seen.add(step.key)
            for need in (*step.needs, *step.order_only):
                yield from walk(need)
            yield step

    for last in (*planned.final.values(), *planned.background.values()):
        if not _is_of_export(last):
            yield from walk(last)


def _is_of_export(step: Step) -> bool:
    return step.type.ships or any(map(_is_of_export, step.needs))
