"""Remember rows that agree with their artifacts, so that thousands of rows are not compared each time."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property, lru_cache

from zsqbench.reports.results import Result, package_version
from zsqbench.steps import KINDS
from zsqbench.store import Store, read_json, write_atomically

MEANING = 1
"""Raise it if steps make different row fields from the same artifacts. Then all rows are compared again."""


class Agreements:
    """Rows that agree with their artifacts, remembered in the home by content of the row and state of the files.

    A row is compared again if its content changes, or if a file of its artifacts has another size or time. `cache
    verify` reads all files, so it also finds damage that changes neither.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._path = store.home / "agreements.json"
        self._folder = store.home / "store"
        self._new: dict[str, str] = {}
        self._version = f"{package_version('zsqbench')} {MEANING}"
        self._state = lru_cache(maxsize=32)(self._look)
        """The state of an artifact's files. Many rows share the state of a float network."""

    def stamp(self, keys: Mapping[str, str]) -> str:
        """The state of the artifacts of a row with these keys. Take it before the artifacts are read."""
        return "".join(self._state(kind, keys[kind]) for kind in final_kinds(keys))

    def hold(self, row: Result, stamp: str) -> bool:
        """True if this row was found to agree with artifacts in this state."""
        name = _name(row)
        known = self._new.get(name) or self._known.get(name)
        return known is not None and known == self._digest(row, stamp)

    def add(self, row: Result, stamp: str) -> None:
        """Remember that a row agrees with artifacts in this state."""
        self._new[_name(row)] = self._digest(row, stamp)

    def forget(self) -> None:
        """Forget the states of artifacts, because one was made again."""
        self._state.cache_clear()

    def save(self) -> None:
        """Add new agreements to those of other processes in the home. Skip this if the home cannot be written to."""
        if not self._new:
            return
        there = {key for kind, job in KINDS.items() if job.final for key in self.store.keys(kind)}
        self._known = {name: digest for name, digest in (self._read() | self._new).items() if name in there}
        self._new = {}
        with contextlib.suppress(OSError):  # without the file, later runs are only slower
            write_atomically(self._path, json.dumps(self._known))

    @cached_property
    def _known(self) -> dict[str, str]:
        return self._read()

    def _read(self) -> dict[str, str]:
        try:
            known = read_json(self._path)
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _look(self, kind: str, key: str) -> str:
        """Names, sizes and times of an artifact's files."""
        try:
            with os.scandir(f"{self._folder}/{kind}/{key}") as found:
                files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in found)
        except OSError:
            return "absent"
        return f"{key}{files}"

    def _digest(self, row: Result, stamp: str) -> str:
        return hashlib.sha256(f"{self._version} {row.measured} {stamp}".encode()).hexdigest()


def final_kinds(keys: Mapping[str, str]) -> list[str]:
    """The kinds of the artifacts of a row with these keys."""
    return [kind for kind in keys if kind in KINDS and KINDS[kind].final]


def _name(row: Result) -> str:
    """The key of the last artifact of a row. Each entry is stored under it."""
    return row.keys[final_kinds(row.keys)[-1]]
