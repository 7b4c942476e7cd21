"""Find and remove the leftovers of killed writers, interrupted steps and damaged artifacts in a home folder."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from zsqbench.errors import ZSQBenchError
from zsqbench.leases import SECONDS, Leases
from zsqbench.store import TEMPORARY, Store, temporary_beside

UNFINISHED = re.compile(rf"{TEMPORARY.pattern}|\..+\.(?:safetensors|json)")
"""The pattern of names of files beside a checkpoint that are not complete yet."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder in a home folder that no process works on."""

    path: Path
    what: str
    """The reason why it is there, in words."""


@dataclass(frozen=True)
class Leftovers:
    """The leftovers of a home folder."""

    home: Path

    def all(self) -> list[Leftover]:
        """All leftovers, also those that a run may continue from or that people may inspect."""
        return [
            *self._left(self._unfinished(), "a writer was killed"),
            *self._left(Leases(self.home).stale(), "its holder is dead"),
            *self._left(self.home.glob("partial/*"), "its step was interrupted or failed; it may go on from here"),
            *self._left(self.home.glob("damaged/*"), "its content had changed"),
        ]

    def clear_temporary(self, ours: Collection[str] = ()) -> int:
        """Remove files that no process will complete, and return their number. Do nothing while other processes work.

        `ours` are the names of the leases of this process. A process that begins meanwhile is safe, because the removed
        files existed before the leases were read.
        """
        beside = [path for path in self.home.glob("partial/*/.*") if UNFINISHED.fullmatch(path.name) and _is_old(path)]
        found = [*self._unfinished(), *beside, *Leases(self.home).stale()]
        if set(Leases(self.home).alive()) - set(ours):
            return 0
        for path in found:
            with contextlib.suppress(OSError):  # a file that stays only costs space
                remove(path)
        return len(found)

    def _unfinished(self) -> list[Path]:
        """Artifacts and files that were never moved into their place."""
        files = [path for path in self.home.glob(".*") if TEMPORARY.fullmatch(path.name) and _is_old(path)]
        archives = [path for path in self.home.glob("compiled/*/*/.*") if TEMPORARY.fullmatch(path.name)]
        return Store(self.home).unfinished() + files + archives

    @staticmethod
    def _left(paths: Iterable[Path], what: str) -> list[Leftover]:
        return [Leftover(path, what) for path in sorted(paths)]


def check_nobody_works(home: Path) -> None:
    """Raise ZSQBenchError while a process is at work in a home folder."""
    alive = Leases(home).alive()
    if alive:
        others = f" and {len(alive) - 1} more" if len(alive) > 1 else ""
        raise ZSQBenchError(
            f"a run is at work in {home} ({alive[0]}{others}) and may need the files that would be removed; wait for "
            f"its end, or end it (if it was killed, wait for {SECONDS:.0f} s)"
        )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, even if parts of it vanish meanwhile.

    A folder first gets the name of an unfinished folder. So an artifact is complete or absent, even if this is killed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        aside = path if path.name.startswith(".") else path.rename(temporary_beside(path))
        shutil.rmtree(aside)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, even if some vanish meanwhile."""
    inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in inside if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            size += file.lstat().st_size
    return size


def _is_old(path: Path) -> bool:
    """True for a file that was not written to for a while. Commands that only read hold no lease."""
    with contextlib.suppress(OSError):
        return path.is_file() and time.time() - path.lstat().st_mtime > SECONDS
    return False
