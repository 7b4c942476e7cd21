"""A name has at most one holder among all processes that share a home folder, even on network file systems."""

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
"""A holder refreshes its file three times in so many seconds. The holder of an older file is dead."""

RUN = "run-"
"""The prefix of leases that say that a run uses the home."""


@dataclass
class Leases:
    """The leases of one process: files with a heartbeat below the home folder, made with O_EXCL.

    Leases save work, but results do not depend on them. A holder that stops for longer than `SECONDS` loses its lease
    to another process and does not notice it. In a folder that cannot be written to, every lease is granted.
    """

    home: Path
    _held: "dict[str, SoftFileLease]" = field(default_factory=dict)
    _watched: "dict[str, SoftFileLease]" = field(default_factory=dict)
    """Leases of other processes. Their age is compared from one attempt to the next."""
    _claims: set[str] = field(default_factory=set)
    _holder: str = field(default_factory=lambda: f"steps-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    """The name of the lease that all claims refer to."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.home / "leases"

    def take(self, name: str) -> bool:
        """Take a lease, and hold it until it is released or this process ends. False: another process has it."""
        from filelock import SoftFileLease, Timeout  # planning takes no lease, so it does not import this

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
        """Take a lease as one of many: it links to the file of one lease, whose heartbeat counts for all of them.

        A file with its own heartbeat needs a thread, which is too much for each of many short steps. On a file system
        without links, the lease gets a file of its own.
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
        """Remove the claim of a dead holder. True: it is gone. One process at a time does this, to lose no claim."""
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
            with contextlib.suppress(OSError):  # the file or the folder may be gone
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
        """Hold a lease meanwhile. Yields true if the lease was granted."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.release(name)

    def alive(self, prefix: str = "") -> list[str]:
        """Names that living processes hold, sorted. This process is included."""
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
        """The time by the clock of the file system, which may differ from the clock of this host."""
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
    """The file that a link names. Empty: it is not a link, or is gone."""
    try:
        return link.readlink().name
    except OSError:
        return ""
