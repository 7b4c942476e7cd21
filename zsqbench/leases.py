"""One holder at a time for a name, among all processes that share a home folder, on network file systems, too."""

import contextlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import SoftFileLease

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
    _held: "dict[str, SoftFileLease]" = field(default_factory=dict)
    _watched: "dict[str, SoftFileLease]" = field(default_factory=dict)
    """Leases of others, which are seen to grow old from one attempt to the next."""
    _claims: set[str] = field(default_factory=set)
    _holder: str = field(default_factory=lambda: f"steps-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    """The name of the lease that all claims refer to."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.home / "leases"

    def take(self, name: str) -> bool:
        """Take a lease, and hold it until it is released, or this process ends. False where another process has it."""
        from filelock import SoftFileLease, Timeout  # planning takes none

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

    def claim(self, name: str) -> bool:
        """Take a lease as one of many: a link to the file of one lease, whose heartbeat stands for all of them.

        A file of its own with a heartbeat takes a thread, which is too much for each of many short steps. Where the
        file system has no links, it is taken like any other.
        """
        if name in self._claims or name in self._held:
            return True
        if not self.take(self._holder):
            return False
        link = self._link(name)
        for _ in range(2):
            try:
                link.symlink_to(self._file(self._holder).name)
            except FileExistsError:
                if not self._clear_claim(link):
                    return False
            except OSError:
                return self.take(name)
            else:
                self._claims.add(name)
                return True
        return False  # another process was faster

    def _clear_claim(self, link: Path) -> bool:
        """Remove a claim whose holder is dead; true if it is gone. One process at a time does, so that none is lost."""
        with self.hold("clearing") as alone, contextlib.suppress(OSError):  # the claim may be released meanwhile
            holder = link.readlink().stem
            if not alone or holder == self._holder or not self.take(holder):
                return False
            self.release(holder)
            link.unlink()
        return True

    def release(self, name: str) -> None:
        """Give back a lease, if it is held."""
        if name in self._claims:
            self._claims.discard(name)
            with contextlib.suppress(OSError):  # it, or the folder, may be gone
                if self._link(name).readlink().stem == self._holder:
                    self._link(name).unlink()
        lease = self._held.pop(name, None)
        if lease is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                lease.release(force=True)

    def close(self) -> None:
        """Give back all leases."""
        for name in [*self._claims, *self._held]:
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
        """Files that dead holders left, and claims that refer to them, sorted."""
        ages = self._ages("*")
        left = [file for file, age in ages.items() if age >= SECONDS]
        alive = {file.name for file, age in ages.items() if age < SECONDS}
        claims = [link for link in self.folder.glob("*.claim") if _target(link) not in alive]
        return sorted(left + claims)

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

    def _link(self, name: str) -> Path:
        return self.folder / f"{name}.claim"


def _target(link: Path) -> str:
    """The file that a link names; nothing where it is no link, or gone."""
    try:
        return link.readlink().name
    except OSError:
        return ""
