"""Preliminary steps come before the plan, which is made of the facts that they leave."""

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
    """Leaves facts in the manifest, as the fields of a dataclass; no cell has it as a step of its own."""

    facts_type: ClassVar[type]
    """The dataclass."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> None:
        """None: it is planned for a network, before the cells are."""

    @classmethod
    def stored(cls, store: Store, key: str) -> Any:
        """The facts that an earlier run left, or none; what is damaged or of another version is put aside."""
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
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:  # noqa: ARG003 - rows do not name it
        """Always: it is small, and every plan needs it."""
        return True
