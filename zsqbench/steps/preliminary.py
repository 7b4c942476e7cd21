"""Preliminary steps come before the plan. The plan uses the facts that they leave."""

import contextlib
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar

from pydantic import TypeAdapter

from zsqbench.errors import CorruptArtifactError
from zsqbench.steps.planning import CellPlanning
from zsqbench.steps.step import Job
from zsqbench.store import Store

_reader = cache(TypeAdapter)


class PreliminaryJob(Job):
    """A step that leaves facts in the manifest, as the fields of a dataclass. It does not belong to a cell."""

    facts_type: ClassVar[type]
    """The dataclass."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> None:
        """None: the step is planned for a network, before the cells."""

    @classmethod
    def stored(cls, store: Store, key: str) -> Any:
        """The facts that an earlier run left. None: there are none. A damaged or outdated artifact is put aside."""
        if not store.has(cls.kind, key):
            return None
        with contextlib.suppress(CorruptArtifactError):
            artifact = store.look(cls.kind, key)
            with artifact.reading():
                if artifact.content.keys() == {each.name for each in fields(cls.facts_type)}:
                    return _reader(cls.facts_type).validate_python(artifact.content)
        store.discard(key)
        return None

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:  # noqa: ARG003 - rows do not name the step
        """True always: the artifact is small, and every plan needs it."""
        return True
