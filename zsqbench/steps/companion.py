"""A companion looks at one artifact of a row, for people: it is found and removed with the artifact."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.results import Result
from zsqbench.steps.planning import Data
from zsqbench.steps.step import Job, Step
from zsqbench.store import Artifact, NoArtifact, Store, reading
from zsqbench.suite import Suite

REAL_SEED = 2**31 - 1
"""Draws the real images: the same for all cells of a network, and other ones than `real` draws for a cell's seed."""

_SHARED = 32
"""How many characters of its key are those of the artifact's."""


class Companion(Job):
    """A background step about what one other step left; it may look at real images that are not evaluated.

    Its key begins like that of the artifact, so that a row, which holds the latter, finds it.
    """

    background: ClassVar[bool] = True
    about: ClassVar[type[Job]]
    """The kind of that step, the first that it needs."""

    real: bool
    """True if the task has images that it does not evaluate."""

    @classmethod
    def key_of(cls, identity: str, needs: tuple[Step, ...]) -> str:
        """Half of it is the artifact's."""
        return companion_key(identity, needs[0].key)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """True if there are real images to look at."""
        return super().details(step, suite, data) | {"real": data is not None and data.calibration is not None}

    @classmethod
    def is_expected(cls, row: Result) -> bool:
        """True if a row has such an artifact: it does not say if a look at it was asked for."""
        return cls.about.kind in row.keys

    @classmethod
    def beside(cls, store: Store, row: Result) -> list[Artifact]:
        """All that companions of this kind left of a row's artifact. Raises CorruptArtifactError for a damaged one."""
        start = row.keys[cls.about.kind][:_SHARED]
        return [store.read(cls.kind, key) for key in store.keys_from(cls.kind, start)]

    @classmethod
    def failure(cls, store: Store, row: Result) -> str | None:
        """Why the last look at a row's artifact failed, if it did."""
        failures = store.failures(row.keys[cls.about.kind][:_SHARED]) if cls.is_expected(row) else []
        return failures[-1] if failures else None

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """As long as the artifact."""
        return key[:_SHARED] in _starts(kept)

    @staticmethod
    def is_of_task(artifact: Artifact, row: Result) -> bool:
        """True if the row's own task gave the real images: two tasks may share an artifact."""
        own = row.methods.get("task", {})
        with artifact.reading():
            task = artifact.manifest["job"]["task"]
            return all(task[name] == own.get(name) for name in ("method", "options"))


def companion_key(identity: str, key: str) -> str:
    """The key of a companion whose identity has this hash, of the artifact that has this key."""
    return key[:_SHARED] + identity[:_SHARED]


@lru_cache(maxsize=1)
def _starts(keys: frozenset[str]) -> frozenset[str]:
    return frozenset(key[:_SHARED] for key in keys)


class _Kept(Protocol):
    @property
    def key(self) -> str:
        """The artifact that it is of."""


K = TypeVar("K", bound=_Kept)
T = TypeVar("T")


def told(found: K | NoArtifact, what: Callable[[K], T], called: str) -> tuple[K, T] | NoArtifact:
    """The finding on an artifact with something that is told of it, or why there is none.

    `called` names it where it cannot be read, as in "its diagnostics".
    """
    if isinstance(found, NoArtifact):
        return found
    try:
        with reading(found.key):
            return found, what(found)
    except CorruptArtifactError as error:
        return unreadable(called, error)


def unreadable(called: str, error: CorruptArtifactError) -> NoArtifact:
    """The reason of a damaged artifact."""
    return NoArtifact(f"its {called} cannot be read: {error}", damaged=True)
