"""Which methods of a column differ significantly, by the images that each has right. The results are kept on disk."""

import base64
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of
from zsqbench.reports.results import Result
from zsqbench.reports.tables.axes import Column, Row, unique
from zsqbench.reports.tables.competition import Standing, Standings
from zsqbench.statistics import Measured, Resampled, Samples, Ties, ties, unpacked
from zsqbench.store import write_atomically

FOLDER = "standings"
"""The folder below the home with a file for each compared column, named by a hash of all its inputs."""

VERSION = 2
"""Raise it if the same rows would give different standings."""

PRECISION = 1e-6
"""Allowed points between the share of right images and the metric."""


class Value(NamedTuple):
    """The part of a row for the comparison."""

    seed: int | None
    images: int
    reached: float
    """The metric, in percent."""
    packed: str
    """In base64: which images are right, as bits, or the metric on resampled images, as float32."""
    resampled: bool


Values = list[Value] | str
"""The values of a method for each seed, or why there are none."""


class _Kept(BaseModel):
    """The file of a column: its methods by their position."""

    model_config = ConfigDict(frozen=True)

    letters: list[tuple[str, ...]]
    without: list[str | None]
    detectable: float | None
    few_seeds: bool
    untold: list[str]


def find_standings(
    groups: Mapping[tuple[Row, Column], Sequence[Result]], home: Path | None = None
) -> dict[Column, Standings]:
    """The standings of each column in which at least two methods are done.

    `home` keeps them for the next table of the same rows. If it cannot be written to, they are computed each time.
    """
    return {column: _standings(methods, home) for column, methods in _columns(groups).items()}


def find_ties(groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> dict[Column, Ties[Row]]:
    """The p of each pair of methods, for columns with letters of `find_standings`. They are many, so not kept."""
    return {
        column: ties({row: samples_of(each) for row, each in zip(methods, _values(methods), strict=True)})
        for column, methods in _columns(groups).items()
    }


def _columns(groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> dict[Column, dict[Row, list[Result]]]:
    """The results of methods that are done, in each column with at least two."""
    columns: dict[Column, dict[Row, list[Result]]] = {}
    for (row, column), group in groups.items():
        if done := [result for result in group if result.status == "done" and result.value is not None]:
            columns.setdefault(column, {})[row] = done
    return {column: methods for column, methods in columns.items() if len(methods) > 1}


def _standings(methods: Mapping[Row, Sequence[Result]], home: Path | None) -> Standings:
    values = _values(methods)
    kept = _read(values, home)
    if kept is None:
        kept = _compare(values)
        _write(values, kept, home)
    places = (Standing(*place) for place in zip(kept.letters, kept.without, strict=True))
    return Standings(dict(zip(methods, places, strict=True)), kept.detectable, kept.few_seeds, tuple(kept.untold))


def _values(methods: Mapping[Row, Sequence[Result]]) -> list[Values]:
    """The compared values of each method. Methods on other images than most methods are left out."""
    digests = Counter(result.data.get("digest") for group in methods.values() for result in group)
    usual = digests.most_common(1)[0][0]
    return [values_of(group, usual) for group in methods.values()]


def values_of(group: Sequence[Result], digest: str | None) -> Values:
    """The compared values of a method whose seeds are done. `digest` is of the images of the other methods."""
    values = []
    for result in group:
        images, reached = result.data.get("evaluated"), result.value or 0.0
        resampled = result.resampled.get(result.metric or "")
        if (result.correct is None and resampled is None) or not images:
            return "its task keeps no value for each image"
        if result.data.get("digest") != digest:
            return "it was evaluated on other images"
        if resampled is None and abs(100 * _right(result.correct or "") / images - reached) > PRECISION:
            return f"{result.metric} is not the share of images that are right"
        packed = result.correct if resampled is None else resampled
        values.append(Value(result.seed, int(images), reached, packed or "", resampled is not None))
    return values


def _right(correct: str) -> int:
    return int.from_bytes(base64.b64decode(correct)).bit_count()


def _compare(values: Sequence[Values]) -> _Kept:
    """Compare methods, as far as possible."""
    samples = dict(enumerate(map(samples_of, values)))
    found = ties(samples)
    has_seeds = any(each.seeds for each in samples.values() if not isinstance(each, str))
    return _Kept(
        letters=[found.letters.get(place, ()) for place in samples],
        without=[found.without.get(place) for place in samples],
        detectable=found.detectable,
        few_seeds=has_seeds and found.scope == "for these seeds",
        untold=unique(found.untold.values()),
    )


def samples_of(values: Values) -> Measured | str:
    """The values in the form for statistics, or why there are none."""
    import numpy as np

    if isinstance(values, str):
        return values
    if len({(value.images, value.resampled) for value in values}) > 1:
        return "its seeds were evaluated on different numbers of images, or by different versions of the task"
    seeds = tuple(value.seed for value in values if value.seed is not None)
    try:
        if not values[0].resampled:
            return Samples(np.stack([unpacked(value.packed, value.images) for value in values]), seeds)
        reached = np.array([value.reached for value in values])
        rows = np.stack([np.frombuffer(base64.b64decode(value.packed), dtype="<f4") for value in values])
        return Resampled(reached / 100, rows.astype(float) / 100, values[0].images, seeds)
    except ValueError:
        return "its values on resampled images are damaged"
    except ZSQBenchError as error:
        return str(error)


def _path(values: Sequence[Values], home: Path) -> Path:
    return home / FOLDER / f"{digest_of([VERSION, values])}.json"


def _read(values: Sequence[Values], home: Path | None) -> _Kept | None:
    if home is None:
        return None
    try:
        kept = _Kept.model_validate_json(_path(values, home).read_bytes())
    except (OSError, ValidationError):
        return None
    return kept if len(kept.letters) == len(kept.without) == len(values) else None


def _write(values: Sequence[Values], kept: _Kept, home: Path | None) -> None:
    if home is not None:
        with contextlib.suppress(OSError):  # a table needs no home
            write_atomically(_path(values, home), kept.model_dump_json())
