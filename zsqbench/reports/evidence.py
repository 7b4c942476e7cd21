"""Compare a row's numbers with its artifacts, if these are in the store."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import islice, takewhile
from typing import Any

from zsqbench.reports.agreements import Agreements, final_kinds
from zsqbench.reports.results import Measured, Result, flat_all
from zsqbench.steps import KINDS, contributed
from zsqbench.store import Artifact, Store


@dataclass(frozen=True)
class Difference:
    """A number, or packed bits, that differs between a row and its artifacts."""

    name: str
    """The name of the number, such as `metrics.top1`."""
    said: object
    """The value in the row. None: the row does not have it."""
    measured: object
    """The value in the artifacts."""

    def __str__(self) -> str:
        """The difference in one line."""
        return f"{self.name} is {shortened(self.said)}, but {shortened(self.measured)} in its artifact"


class Evidence:
    """The artifacts in a store with the measurements of rows."""

    def __init__(self, store: Store) -> None:
        self.store = ReadOnce(store.home)
        self.agreements = Agreements(store)

    def is_at_hand(self, row: Result) -> bool:
        """True if a row is done, and the artifacts of all its measurements are in the store."""
        return row.status == "done" and all(row.keys[kind] in self._there(kind) for kind in final_kinds(row.keys))

    @cached_property
    def _there(self) -> Callable[[str], set[str]]:
        """Keys of the artifacts of a kind, kept in memory because thousands of rows ask."""
        return cache(self.store.keys)

    def contradiction(self, row: Result) -> str | None:
        """The first number that differs between a row and its artifacts, with both values. None: they agree.

        The artifacts must be in the store. Raises CorruptArtifactError if an artifact is damaged.
        """
        if not final_kinds(row.keys):
            return None  # the row was written by hand: there is nothing to compare or to remember
        stamp = self.agreements.stamp(row.keys)
        if self.agreements.hold(row, stamp):
            return None
        difference = next(map(str, self.differences(row)), None)
        if difference is None:
            self.agreements.add(row, stamp)
        return difference

    def differences(self, row: Result) -> list[Difference]:
        """All numbers that differ between a row and its artifacts.

        The artifacts must be in the store. Raises CorruptArtifactError if an artifact is damaged.
        """
        made = contributed((KINDS[kind] for kind in final_kinds(row.keys)), self.store, row.keys)
        found = {name: made[name] for name in Measured._fields if name in made}
        said, measured = dict(flat_all({name: getattr(row, name) for name in found})), dict(flat_all(found))
        return [
            Difference(name, said.get(name), measured.get(name))
            for name in measured | said
            if not _equal(said.get(name), measured.get(name))
        ]

    def is_source(self, row: Result) -> bool:
        """True if a row was made from these artifacts, not from artifacts of another machine with the same keys.

        Numbers may differ between machines. Seconds always differ.
        """
        return all(self._took_as_long(row))

    def is_measured_here(self, row: Result) -> bool:
        """True if a row was made from at least one artifact of this store.

        Other artifacts may come from another machine: cells of a network share the measurement of the float network.
        """
        return self.is_at_hand(row) and any(self._took_as_long(row))

    def _took_as_long(self, row: Result) -> Iterator[bool]:
        """For each final step of a row: true if its artifact took the seconds in the row."""
        for kind in final_kinds(row.keys):
            yield row.seconds.get(kind) == round(self.store.manifest(kind, row.keys[kind])["seconds"], 3)


class ReadOnce(Store):
    """A store that reads shared artifacts once, such as the measurement of a float network, and lists keys once.

    Use it only if no artifact is made again meanwhile.
    """

    @cached_property
    def _read(self) -> Callable[[str, str], Artifact]:
        return lru_cache(maxsize=32)(super().read)

    @cached_property
    def _look(self) -> Callable[[str, str], Artifact]:
        return lru_cache(maxsize=128)(super().look)

    @cached_property
    def _keys(self) -> Callable[[str], list[str]]:
        return cache(lambda kind: sorted(super(ReadOnce, self).keys(kind)))

    def read(self, kind: str, key: str) -> Artifact:
        """An artifact whose files were verified."""
        return self._read(kind, key)

    def look(self, kind: str, key: str) -> Artifact:
        """An artifact whose manifest was verified."""
        return self._look(kind, key)

    def keys_from(self, kind: str, start: str) -> list[str]:
        """Keys of the artifacts of a kind that begin with this text, sorted. Thousands of rows ask."""
        keys = self._keys(kind)
        first = bisect_left(keys, start)
        return list(takewhile(lambda key: key.startswith(start), islice(keys, first, None)))


def _equal(said: Any, measured: Any) -> bool:
    numbers = isinstance(said, int | float) and isinstance(measured, int | float)
    return math.isclose(said, measured, rel_tol=1e-9, abs_tol=1e-9) if numbers else bool(said == measured)


def shortened(value: object) -> str:
    """A value as a text that fits into a line."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 - packed bits are long
