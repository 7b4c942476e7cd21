"""One holder at a time for a name, among all processes that share a home folder, on network file systems, too."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLease, Timeout

SECONDS = 30.0
"""A holder refreshes its file three times in this time; a file that is older is a dead holder's."""

RUN = "run-"
"""How the names of leases begin that say that a run uses the home."""


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
        files = [file for file in self.folder.glob(f"{prefix}*.lease") if file.is_file()]
        if not files:
            return []
        try:
            with tempfile.NamedTemporaryFile(
                dir=self.folder
            ) as clock:  # the clock of the file system, not of this host
                now = Path(clock.name).stat().st_mtime
        except OSError:
            now = max(file.stat().st_mtime for file in files)
        return sorted(file.stem for file in files if now - file.stat().st_mtime < SECONDS)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.lease"
