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
"""The names of files beside a checkpoint, until they are complete."""


@dataclass(frozen=True)
class Leftover:
    """Something in a home folder that no process is at work on."""

    path: Path
    what: str
    """The reason why it is there, in words."""


@dataclass(frozen=True)
class Leftovers:
    """The leftovers of a home folder."""

    home: Path

    def all(self) -> list[Leftover]:
        """All leftovers, which a run may want to go on from, or people to look at, included."""
        return [
            *self._left(self._unfinished(), "a writer was killed"),
            *self._left(Leases(self.home).stale(), "its holder is dead"),
            *self._left(self.home.glob("partial/*"), "its step was interrupted or failed; it may go on from here"),
            *self._left(self.home.glob("damaged/*"), "it was not what had been written"),
        ]

    def clear_temporary(self, ours: Collection[str] = ()) -> int:
        """Remove what no process will ever complete, and say how much that was; nothing while others are at work.

        `ours` are the names of the leases that this process holds. Whoever begins to work meanwhile is safe: what is
        removed was there before all leases were looked at.
        """
        beside = [path for path in self.home.glob("partial/*/.*") if UNFINISHED.fullmatch(path.name) and _is_old(path)]
        found = [*self._unfinished(), *beside, *Leases(self.home).stale()]
        if set(Leases(self.home).alive()) - set(ours):
            return 0
        for path in found:
            with contextlib.suppress(OSError):  # it costs space only
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
            f"a run is at work in {home} ({alive[0]}{others}) and may need what would be removed; wait for its end, or "
            f"end it (if it was killed, wait for {SECONDS:.0f} s)"
        )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, whatever of it vanishes meanwhile.

    A folder gets the name of an unfinished one first: an artifact is complete or absent, also when this is killed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        aside = path if path.name.startswith(".") else path.rename(temporary_beside(path))
        shutil.rmtree(aside)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, whatever of them vanishes meanwhile."""
    inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in inside if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            size += file.lstat().st_size
    return size


def _is_old(path: Path) -> bool:
    """True for a file that nobody has written to for a while; commands that only look hold no lease."""
    with contextlib.suppress(OSError):
        return path.is_file() and time.time() - path.lstat().st_mtime > SECONDS
    return False
