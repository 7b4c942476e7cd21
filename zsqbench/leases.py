"""One holder at a time for a name, among all processes that share a home folder, on network file systems, too."""

import contextlib
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLease, Timeout

SECONDS = 30.0
"""A holder refreshes its file three times in this time; a file that is older is a dead holder's."""

RUN = "run-"
"""The names of leases that say that a run uses the home begin so."""


@dataclass
class Leases:
    """The leases of one process: files with a heartbeat below the home folder, made with O_EXCL.

    They save work and guard no result: a holder that is stopped for longer than `SECONDS` loses its lease to another
    process without noticing it. A folder that cannot be written to has no leases: each is granted then.
    """

    home: Path
    _held: dict[str, SoftFileLease] = field(default_factory=dict)
    _watched: dict[str, SoftFileLease] = field(default_factory=dict)
    """Leases of others, which are seen to grow old from one attempt to the next."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.home / "leases"

    def take(self, name: str) -> bool:
        """Take a lease, and hold it until it is released, or this process ends. False where another process has it."""
        if name in self._held:
            return True
        lease = self._watched.pop(name, None)
        try:
            if lease is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                lease = SoftFileLease(self._file(name), lease_duration=SECONDS, thread_local=False)
            lease.acquire(timeout=0)
        except Timeout:
            assert lease is not None  # noqa: S101 - only acquiring it times out
            self._watched[name] = lease
            return False
        except OSError:
            return True
        self._held[name] = lease
        return True

    def release(self, name: str) -> None:
        """Give back a lease, if it is held."""
        lease = self._held.pop(name, None)
        if lease is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                lease.release(force=True)

    def close(self) -> None:
        """Give back all leases."""
        for name in list(self._held):
            self.release(name)

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a lease meanwhile; yields whether it could be had."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.release(name)

    def alive(self, prefix: str = "") -> list[str]:
        """Names that living processes hold, this one included, sorted."""
        return sorted(file.stem for file, age in self._ages(f"{prefix}*.lease").items() if age < SECONDS)

    def stale(self) -> list[Path]:
        """Files that dead holders left, sorted."""
        return sorted(file for file, age in self._ages("*").items() if age >= SECONDS)

    def _ages(self, pattern: str) -> dict[Path, float]:
        """Seconds since each of these files was refreshed."""
        times: dict[Path, float] = {}
        for file in self.folder.glob(pattern):
            with contextlib.suppress(OSError):  # it may be released meanwhile
                status = file.lstat()
                if stat.S_ISREG(status.st_mode):
                    times[file] = status.st_mtime
        now = self._now(times.values()) if times else 0.0
        return {file: now - refreshed for file, refreshed in times.items()}

    def _now(self, times: Iterable[float]) -> float:
        """The time by the clock of the file system, which may be another one than this host's."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder) as clock:
                return Path(clock.name).stat().st_mtime
        except OSError:
            return max(times)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.lease"
