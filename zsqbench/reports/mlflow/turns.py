"""The processes of a home folder log to MLflow by turns."""

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zsqbench.hashing import digest_of
from zsqbench.leases import Leases

PATIENCE = 300.0
"""Seconds that a process waits for its turn. A turn takes about a second, and a stopped process soon loses its own."""

PAUSE = 0.02
"""Seconds between two looks whether it is one's turn."""


@dataclass
class Turns:
    """The turns of one process to log, and the signs of life of its invocations.

    A new database is made in a turn, and a cell is looked for and logged in one: so it is there once, and a run of a
    cell that is not ended is what a dead process left.
    """

    leases: Leases
    progress: Callable[[], None] = lambda: None
    """Called after each turn, and again and again while others have theirs."""
    home: str = field(init=False)
    """Whose turns these are, as a hash. Two computers that share a server may have a folder of the same name."""

    def __post_init__(self) -> None:
        self.home = digest_of([platform.node(), str(self.leases.home.resolve())])

    @classmethod
    def of(cls, home: Path, progress: Callable[[], None] = lambda: None) -> "Turns":
        """Those of a home folder."""
        return cls(Leases(home), progress)

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait until no other process logs, and keep others from it meanwhile. Raises TimeoutError."""
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
        """Say that an invocation is alive, until it is ended or its process is."""
        self.leases.take(_name(run_id))

    def end(self, run_id: str) -> None:
        """Say that an invocation is over."""
        self.leases.release(_name(run_id))

    def is_alive(self, run_id: str) -> bool:
        """True if another process has begun an invocation, and lives. A dead one of this computer is known at once."""
        taken = self.leases.take(_name(run_id))
        if taken:
            self.leases.release(_name(run_id))
        return not taken and _name(run_id) in self.leases.alive("mlflow-")


def _name(run_id: str) -> str:
    return f"mlflow-{run_id}"
