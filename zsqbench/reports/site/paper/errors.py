"""Errors of quantized networks on images that are hard or easy for the float network."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.results import Result
from zsqbench.reports.site.paper.figure import COLORS, Absent, PaperFigure, name, number, panels, some, tips
from zsqbench.reports.tables.axes import Row, grouped, names_of, unique
from zsqbench.statistics.samples import unpacked
from zsqbench.steps import evaluations
from zsqbench.steps.baseline import Baseline
from zsqbench.store import Store

if TYPE_CHECKING:
    import numpy as np

    from zsqbench.reports.site.charts import Spec

FIELDS = ("method", "scheme", "difficulty", "error", "count", "seeds")
"""Fields of the data: a `Point` each."""

BINS = 10


class Point(NamedTuple):
    """The error of a method on images of similar difficulty."""

    method: str
    scheme: str
    difficulty: float
    """The middle of a bin of 1 - p."""
    error: float
    """The error in percent, as the mean over seeds."""
    among: int
    """Number of images."""
    seeds: int


class Errors(NamedTuple):
    """The errors of one network on images of similar difficulty."""

    share: float
    """The error in percent of the images."""
    among: int


def errors_by_difficulty(rows: Sequence[Result], store: Store, where: str) -> list[PaperFigure | Absent]:
    """The error of each method by the difficulty of images for the float network, 1 - p, as means over seeds.

    The bins are those of HAST's Figure 2b: ten of equal width. A bin without images has no point.
    """
    title, why = f"error-by-difficulty {where}", "no done result says which images were right"

    @cache
    def bins(key: str) -> "np.ndarray | str":
        return _bins(store, key)

    names = names_of(map(Row.of, rows))
    points: list[Point] = []
    for (method, column), group in grouped(row for row in rows if row.status == "done" and row.correct).items():
        found: list[dict[int, Errors]] = []
        for row in group:
            of_float = bins(row.keys.get(Baseline.kind, ""))
            errors = of_float if isinstance(of_float, str) else _errors(row, of_float)
            if isinstance(errors, str):
                why = errors
            else:
                found.append(errors)
        for place in range(BINS):
            if parts := [errors[place] for errors in found if place in errors]:
                error = round(sum(part.share for part in parts) / len(parts), 3)
                middle = (place + 0.5) / BINS
                points.append(Point(names[method].words, column.label, middle, error, parts[0].among, len(parts)))
    return [_figure(title, where, points) if points else Absent(title, why)]


def _figure(title: str, where: str, points: Sequence[Point]) -> PaperFigure:
    by_method: dict[str, list[Point]] = {}
    for point in points:
        by_method.setdefault(point.method, []).append(point)
    methods, left_out = some(sorted(by_method, key=lambda method: _error(by_method[method])), "methods", "best")
    shown = [point for point in points if point.method in methods]
    layer: Spec = {
        "mark": {"type": "line", "point": {"size": 20}},
        "encoding": {
            "x": number("difficulty", "difficulty for the float network, 1 - p") | {"scale": {"domain": [0, 1]}},
            "y": number("error", "error (%)", zero=True),
            "color": name("method", methods) | {"scale": COLORS},
            "tooltip": tips(*FIELDS),
        },
    }
    spec = panels("scheme", unique(point.scheme for point in shown), [layer])
    return PaperFigure.of(title, f"{where}: error by difficulty{left_out}", FIELDS, shown, spec)


def _error(points: Sequence[Point]) -> float:
    """The error in all bins together, because few images are hard."""
    return sum(point.error * point.among for point in points) / sum(point.among for point in points)


def _bins(store: Store, key: str) -> "np.ndarray | str":
    """The bin of each image, by its difficulty for the float network, or why it is not known."""
    import numpy as np

    if not store.has(Baseline.kind, key):
        return f"the measurement of the float network is not in {store.home}"
    try:
        samples = evaluations.read_samples(store.read(Baseline.kind, key))
    except (ZSQBenchError, OSError, ValueError) as error:
        return str(error)
    if evaluations.DIFFICULTIES not in samples:
        return "the measurement of the float network does not say how hard each image is"
    found: np.ndarray = np.minimum(samples[evaluations.DIFFICULTIES].astype(float) * BINS, BINS - 1).astype(int)
    return found


def _errors(row: Result, bins: "np.ndarray") -> dict[int, Errors] | str:
    """The errors of a quantized network in each bin that has images, or why they are not known."""
    if row.data.get("evaluated") != len(bins):
        return "the float network was measured on another number of images"
    wrong = ~unpacked(str(row.correct), len(bins))
    places = {place: bins == place for place in range(BINS)}
    return {
        place: Errors(100 * float(wrong[there].mean()), int(there.sum()))
        for place, there in places.items()
        if there.any()
    }
