"""A row's numbers beside those of the artifacts that it was made from, where these are at hand."""

import math
from typing import Any

from zsqbench.reports.results import Result, flat_all
from zsqbench.steps import KINDS
from zsqbench.store import Store

MEASURED = ("metrics", "float_metrics", "oracle", "correct")
"""The fields of a row that say what was measured."""


def is_at_hand(row: Result, store: Store) -> bool:
    """True if a row is done, and the artifacts of all that was measured for it are in the store."""
    return row.status == "done" and all(store.has(kind, row.keys[kind]) for kind in _final(row))


def contradiction(row: Result, store: Store) -> str | None:
    """The first number of a row that its artifacts say otherwise, with both values, or none.

    The artifacts are at hand. Raises CorruptArtifactError where one is damaged.
    """
    found: dict[str, Any] = {}
    for kind in _final(row):
        found |= {name: value for name, value in KINDS[kind].row(store, row.keys).items() if name in MEASURED}
    said, measured = (dict(flat_all(each)) for each in ({name: getattr(row, name) for name in found}, found))
    for name in measured | said:
        if not _equal(said.get(name), measured.get(name)):
            return f"{name} is {_short(said.get(name))}, and {_short(measured.get(name))} in its artifact"
    return None


def is_source(row: Result, store: Store) -> bool:
    """True if a row was made from the artifacts that are at hand, and not from equal ones of another machine.

    Numbers may differ between machines. Seconds always do.
    """
    return all(
        row.seconds.get(kind) == round(store.manifest(kind, row.keys[kind])["seconds"], 3) for kind in _final(row)
    )


def _final(row: Result) -> list[str]:
    return [kind for kind in row.keys if kind in KINDS and KINDS[kind].final]


def _equal(said: Any, measured: Any) -> bool:
    numbers = isinstance(said, int | float) and isinstance(measured, int | float)
    return math.isclose(said, measured, rel_tol=1e-9, abs_tol=1e-9) if numbers else bool(said == measured)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 - packed bits are long
