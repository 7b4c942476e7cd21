"""The processes of a home folder log to MLflow in turns."""

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zsqbench.hashing import digest_of
from zsqbench.leases import Leases

PATIENCE = 300.0
"""Seconds that a process waits for its turn. A turn takes about a second, and a stopped process soon loses its turn."""

PAUSE = 0.02
"""Seconds between two checks for the turn."""


@dataclass
class Turns:
    """The turns of one process to log, and the signs of life of its invocations.

    A new database is made in a turn, and a cell is searched and logged in one turn. So each cell is logged once, and a
    run of a cell that is not ended comes from a dead process.
    """

    leases: Leases
    progress: Callable[[], None] = lambda: None
    """Called after each turn, and repeatedly while other processes have their turn."""
    home: str = field(init=False)
    """The hash of computer and home folder. Two computers that share a server may have folders with the same name."""

    def __post_init__(self) -> None:
        self.home = digest_of([platform.node(), str(self.leases.home.resolve())])

    @classmethod
    def of(cls, home: Path, progress: Callable[[], None] = lambda: None) -> "Turns":
        """The turns of a home folder."""
        return cls(Leases(home), progress)

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait until no other process logs, and let no other process log meanwhile. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while not self.leases.take("mlflow"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"other processes logged for {PATIENCE:.0f} s")
            self.progress()
            time.sleep(PAUSE)
        try:
            yield
        finally:
            self.leases.release("mlflow")
        self.progress()

    def begin(self, run_id: str) -> None:
        """Show that an invocation is alive, until it or its process ends."""
        self.leases.take(_name(run_id))

    def end(self, run_id: str) -> None:
        """Show that an invocation has ended."""
        self.leases.release(_name(run_id))

    def is_alive(self, run_id: str) -> bool:
        """True if another living process has begun an invocation. A dead process of this computer is seen at once."""
        taken = self.leases.take(_name(run_id))
        if taken:
            self.leases.release(_name(run_id))
        return not taken and _name(run_id) in self.leases.alive("mlflow-")


def _name(run_id: str) -> str:
    return f"mlflow-{run_id}"
