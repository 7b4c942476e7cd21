"""The file of a suite's rows: read its lines, and write to it from several processes."""

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from zsqbench.errors import ZSQBenchError
from zsqbench.garbage import uncollected
from zsqbench.reports.results import Result
from zsqbench.store import write_parts_atomically

SCHEMA = 2
"""The schema of a row. Raise it if a reader of another version would misunderstand a field or lack a needed one."""

PATIENCE = 5.0
"""Seconds to wait for another writer, which needs milliseconds. A stopped writer does not delay a run longer."""


@dataclass(frozen=True)
class Contents:
    """The content of a file of rows, and its lines that do not count."""

    rows: list[Result] = field(default_factory=list)
    """The row that counts for each cell of each suite, in the order of the first row of each cell."""
    older: list[Result] = field(default_factory=list)
    """Other rows of the same cells."""
    unreadable: list[int] = field(default_factory=list)
    """Numbers of lines that are not rows. They were cut off by a crash or a full disk, or edited."""
    schemas: list[int] = field(default_factory=list)
    """Schemas of rows from other versions."""

    def are(self, rows: Sequence[Result]) -> bool:
        """True if the file holds these rows in this order, and nothing else."""
        return self.rows == list(rows) and not (self.older or self.unreadable or self.schemas)


class ResultFile:
    """results/<suite>.jsonl: rows are appended as cells finish. If a cell has several rows, the latest counts.

    Several processes can append and rewrite at the same time. No row is lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: tuple[tuple[int, int, int], Contents] | None = None
        """The contents of the last reading, with inode, size and time of the file."""
        self._appended: dict[bytes, Result] = {}
        """The rows that this process added, by the digest of their line. They are not parsed or stored again."""

    def read(self) -> dict[tuple[str, str], Result]:
        """Rows by suite and cell.

        Raises ZSQBenchError for a file that cannot be read, or whose rows have another schema.
        """
        contents = self.contents()
        self.refuse_others(contents)
        return {(row.suite, row.cell): row for row in contents.rows}

    def refuse_others(self, contents: Contents) -> None:
        """Raise ZSQBenchError if there are rows of another schema."""
        if contents.schemas:
            raise ZSQBenchError(
                f"{self.path} has rows of schema {', '.join(map(str, contents.schemas))}, and this zsqbench reads "
                f"{SCHEMA}; run the suite again: it measures missing cells and replaces these rows"
            )

    def contents(self) -> Contents:
        """The contents of the file. Empty: there is no file. Raises ZSQBenchError if it cannot be read.

        An unchanged file is not read again.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(
                    file.fileno()
                )  # before reading, so that lines that are added meanwhile are not missed
                state = status.st_ino, status.st_size, status.st_mtime_ns
                if self._last is None or self._last[0] != state:
                    with uncollected():
                        self._last = state, _contents(file, self._appended)
        except FileNotFoundError:
            return Contents()
        except OSError as error:
            raise ZSQBenchError(f"cannot read {self.path}: {error.strerror}") from error
        return self._last[1]

    def append(self, result: Result) -> None:
        """Add a row, and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = _line(result).encode()
        with self._alone() as file:
            cut_off = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" + line if cut_off else line)
            file.flush()
            os.fsync(file.fileno())
        self._appended[_digest(line.rstrip(b"\n"))] = result.checked()

    def rewrite(self, arrange: Callable[[Contents], Sequence[Result]]) -> Sequence[Result]:
        """Write the rows that `arrange` makes of the contents, and return them. An equal file is not changed."""
        contents = self.contents()
        rows = arrange(contents)
        if contents.are(rows):
            return rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            rows = arrange(self.contents())  # again: another run may have added some
            write_parts_atomically(self.path, map(_line, rows))
        self._last = None  # free the contents: ten thousand rows take 130 MB
        return rows

    @contextlib.contextmanager
    def _alone(self) -> Iterator[BinaryIO]:
        """The file, open for appending. No other process writes to it meanwhile."""
        while True:
            with self.path.open("ab+") as file:
                _lock(file)
                if _is_at(self.path, file):  # another process may have replaced the file before it released the lock
                    yield file
                    return


def _contents(lines: Iterable[bytes], known: Mapping[bytes, Result]) -> Contents:
    """The rows and other lines of a file, one line at a time. Some rows are known by the digest of their line."""
    found: dict[tuple[str, str], list[Result]] = {}
    unreadable: list[int] = []
    schemas: set[int] = set()
    for number, whole in enumerate(lines, start=1):
        line = whole.removesuffix(b"\n")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        schema = SCHEMA if line.startswith(_BEGIN) else _schema_of(line)
        row = (known.get(_digest(line)) or _row(line)) if schema == SCHEMA else None
        if row is not None:
            found.setdefault((row.suite, row.cell), []).append(row)
        elif schema not in (None, SCHEMA):
            schemas.add(schema)
        elif line.strip():
            unreadable.append(number)
    rows, older = _counted(found.values())
    return Contents(rows, older, unreadable, sorted(schemas))


def _lock(file: BinaryIO) -> None:
    """Wait until no other process writes to a file. A file system without locks is used without them."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return None
    return None


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


_BEGIN = f'{{"schema":{SCHEMA},'.encode()
"""Each line of this version begins with this text, so that it is parsed only once."""


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).digest()


def _line(result: Result) -> str:
    return _BEGIN.decode() + result.model_dump_json(exclude_defaults=True)[1:] + "\n"


def _row(line: bytes) -> Result | None:
    try:
        return Result.model_validate_json(line).checked()
    except ValidationError:
        return None


def _schema_of(line: bytes) -> int | None:
    """The schema of a row. The first schema had no number. None: the line is not a row."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not {"suite", "cell", "status"} <= data.keys():
        return None
    schema = data.get("schema", 1)
    return schema if isinstance(schema, int) else None


def _counted(cells: Iterable[Sequence[Result]]) -> tuple[list[Result], list[Result]]:
    """The row of each cell that counts, and all other rows."""
    rows: list[Result] = []
    older: list[Result] = []
    for of_cell in cells:
        if len(of_cell) == 1:
            rows += of_cell
            continue
        by_age = sorted(
            of_cell, key=lambda row: row.ended
        )  # rows that finished at the same time stay in the order of the file
        counts = reduce(lambda best, row: row if row.counts_over(best) else best, by_age)
        rows.append(counts)
        place = next(place for place, row in enumerate(of_cell) if row is counts)
        older += [*of_cell[:place], *of_cell[place + 1 :]]  # equal lines may be one row
    return rows, older
