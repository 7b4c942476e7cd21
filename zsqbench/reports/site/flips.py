"""The evaluation samples that change from right to wrong, or back, when the network is quantized."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.reports.results import Result
from zsqbench.statistics import unpacked
from zsqbench.steps import evaluations
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.evaluate import Evaluate
from zsqbench.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

LISTED = 100
"""At most so many samples of each kind are listed."""


@dataclass(frozen=True)
class Flip:
    """A sample that flips: its index among the evaluation samples, and classes. None: not known."""

    sample: int
    label: int | None
    before: int | None
    """The class that the float network predicts."""
    after: int | None


@dataclass(frozen=True)
class Flips:
    """The first samples of each kind that flip, and the number of all."""

    lost: tuple[Flip, ...]
    """Right with the float network, wrong with the quantized one."""
    won: tuple[Flip, ...]
    losses: int
    wins: int
    samples: int


def find_flips(row: Result, store: Store) -> Flips | str:
    """The flips of a row that is done, or why they are not known."""
    images = row.data.get("evaluated")
    if row.correct is None or not images:
        return "the task keeps no value for each sample"
    try:
        found = _samples(Baseline.kind, row, store)
        if found is None:
            return f"the measurement of the float network is not in {store.home}"
        if evaluations.CORRECT not in found:
            return "the float network has no value for each sample"
        if len(found[evaluations.CORRECT]) != math.ceil(images / 8):
            return "the float network was measured on another number of samples"
        return _flips(unpacked(row.correct, images), images, found, _samples(Evaluate.kind, row, store) or {})
    except (CorruptArtifactError, ZSQBenchError, OSError, ValueError) as error:
        return str(error)


def _samples(kind: str, row: Result, store: Store) -> "Mapping[str, np.ndarray] | None":
    """Samples of a measurement. None: the measurement is not here."""
    key = row.keys.get(kind)
    return evaluations.read_samples(store.read(kind, key)) if key is not None and store.has(kind, key) else None


def _flips(
    right: "np.ndarray", images: int, of_float: "Mapping[str, np.ndarray]", own: "Mapping[str, np.ndarray]"
) -> Flips:
    import numpy as np

    was_right = np.unpackbits(of_float[evaluations.CORRECT], count=images).astype(bool)
    columns = [
        samples.get(name)
        for samples, name in (
            (of_float, evaluations.LABELS),
            (of_float, evaluations.PREDICTIONS),
            (own, evaluations.PREDICTIONS),
        )
    ]
    lost, won = np.flatnonzero(was_right & ~right), np.flatnonzero(right & ~was_right)
    listed = [
        tuple(
            Flip(int(at), *(None if column is None else int(column[at]) for column in columns)) for at in each[:LISTED]
        )
        for each in (lost, won)
    ]
    return Flips(listed[0], listed[1], len(lost), len(won), images)
