"""A companion examines one artifact of a row, for people. It is found and removed with the artifact."""

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
"""The seed that draws real images. They are the same for all cells of a network, but not those of `real`."""

_SHARED = 32
"""So many characters of its key are equal to those of the artifact."""


class Companion(Job):
    """A background step about the artifact of one other step. It may read real images that are not evaluated.

    Its key begins like the key of the artifact. A row holds the key of the artifact, so it can find the companion.
    """

    background: ClassVar[bool] = True
    about: ClassVar[type[Job]]
    """The kind of that step. It is the first of the steps that the companion needs."""

    real: bool
    """True if the task has images that it does not evaluate."""

    @classmethod
    def key_of(cls, identity: str, needs: tuple[Step, ...]) -> str:
        """The first half is that of the artifact."""
        return companion_key(identity, needs[0].key)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """True if there are real images to read."""
        return super().details(step, suite, data) | {"real": data is not None and data.calibration is not None}

    @classmethod
    def is_expected(cls, row: Result) -> bool:
        """True if a row has an artifact for the companion. A row does not say if the suite asked for the companion."""
        return cls.about.kind in row.keys

    @classmethod
    def beside(cls, store: Store, row: Result) -> list[Artifact]:
        """The results of all companions of this kind for a row's artifact. Raises CorruptArtifactError."""
        start = row.keys[cls.about.kind][:_SHARED]
        return [store.read(cls.kind, key) for key in store.keys_from(cls.kind, start)]

    @classmethod
    def failure(cls, store: Store, row: Result) -> str | None:
        """Why the last companion of a row's artifact failed. None: it did not."""
        failures = store.failures(row.keys[cls.about.kind][:_SHARED]) if cls.is_expected(row) else []
        return failures[-1] if failures else None

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """True as long as rows refer to the artifact."""
        return key[:_SHARED] in _starts(kept)

    @staticmethod
    def is_of_task(artifact: Artifact, row: Result) -> bool:
        """True if the row's own task gave the real images. Two tasks may share an artifact."""
        own = row.methods.get("task", {})
        with artifact.reading():
            task = artifact.manifest["job"]["task"]
            return all(task[name] == own.get(name) for name in ("method", "options"))


def companion_key(identity: str, key: str) -> str:
    """The key of a companion, from the hash of its identity and the key of its artifact."""
    return key[:_SHARED] + identity[:_SHARED]


@lru_cache(maxsize=1)
def _starts(keys: frozenset[str]) -> frozenset[str]:
    return frozenset(key[:_SHARED] for key in keys)


class _Kept(Protocol):
    @property
    def key(self) -> str:
        """The artifact that it examines."""


K = TypeVar("K", bound=_Kept)
T = TypeVar("T")


def told(found: K | NoArtifact, what: Callable[[K], T], called: str) -> tuple[K, T] | NoArtifact:
    """The first companion of an artifact that can be described, or why there is none.

    `called` is its name in a message, as in "its diagnostics".
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
