"""A row's numbers beside those of the artifacts that it was made from, where these are at hand."""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from itertools import islice, takewhile
from typing import Any

from zsqbench.reports.results import Measured, Result, flat_all
from zsqbench.steps import KINDS, contributed
from zsqbench.store import Artifact, Store


class Evidence:
    """The artifacts in a store that say what was measured for a row."""

    def __init__(self, store: Store) -> None:
        self.store = ReadOnce(store.home)

    def is_at_hand(self, row: Result) -> bool:
        """True if a row is done, and the artifacts of all that was measured for it are in the store."""
        return row.status == "done" and all(self.store.has(kind, row.keys[kind]) for kind in _final(row))

    def contradiction(self, row: Result) -> str | None:
        """The first number of a row that its artifacts, which are at hand, say otherwise, with both values, or none.

        Raises CorruptArtifactError where an artifact is damaged.
        """
        made = contributed((KINDS[kind] for kind in _final(row)), self.store, row.keys)
        found = {name: made[name] for name in Measured._fields if name in made}
        said, measured = dict(flat_all({name: getattr(row, name) for name in found})), dict(flat_all(found))
        for name in measured | said:
            if not _equal(said.get(name), measured.get(name)):
                return f"{name} is {_short(said.get(name))}, and {_short(measured.get(name))} in its artifact"
        return None

    def is_source(self, row: Result) -> bool:
        """True if a row was made from these artifacts, and not from those of another machine, which have the same keys.

        Numbers may differ between machines. Seconds always do.
        """
        manifests = {kind: self.store.manifest(kind, row.keys[kind]) for kind in _final(row)}
        return all(row.seconds.get(kind) == round(manifest["seconds"], 3) for kind, manifest in manifests.items())


class ReadOnce(Store):
    """A store that reads once what many rows share, such as the measurement of a float network, and looks once.

    It is for a command that writes no artifacts.
    """

    @cached_property
    def _read(self) -> Callable[[str, str], Artifact]:
        return lru_cache(maxsize=32)(super().read)

    @cached_property
    def _keys(self) -> Callable[[str], list[str]]:
        return cache(lambda kind: sorted(super(ReadOnce, self).keys(kind)))

    def read(self, kind: str, key: str) -> Artifact:
        """An artifact whose files were verified."""
        return self._read(kind, key)

    def keys_from(self, kind: str, start: str) -> list[str]:
        """Keys of the artifacts of a kind that begin so, sorted: thousands of rows ask."""
        keys = self._keys(kind)
        first = bisect_left(keys, start)
        return list(takewhile(lambda key: key.startswith(start), islice(keys, first, None)))


def _final(row: Result) -> list[str]:
    return [kind for kind in row.keys if kind in KINDS and KINDS[kind].final]


def _equal(said: Any, measured: Any) -> bool:
    numbers = isinstance(said, int | float) and isinstance(measured, int | float)
    return math.isclose(said, measured, rel_tol=1e-9, abs_tol=1e-9) if numbers else bool(said == measured)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 - packed bits are long
