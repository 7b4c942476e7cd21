"""Errors of quantized networks on what is hard for the float network, and on what is easy."""

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.axes import Row, grouped, names_of, unique
from zsqbench.reports.results import Result
from zsqbench.reports.site.paper.figure import Absent, PaperFigure, name, number, panels, some, tips
from zsqbench.statistics.samples import unpacked
from zsqbench.steps import evaluations
from zsqbench.steps.baseline import Baseline
from zsqbench.store import Store

if TYPE_CHECKING:
    import numpy as np

    from zsqbench.reports.site.charts import Spec

FIELDS = ("method", "scheme", "images", "error", "count", "seeds")
"""Fields of the data: a `Bar` each."""

EASY, HARD = "float network right", "float network wrong"


class Bar(NamedTuple):
    """The error of a method on some images."""

    method: str
    scheme: str
    images: str
    """`EASY` or `HARD`."""
    error: float
    """In percent, the mean over seeds."""
    among: int
    """How many images they are."""
    seeds: int


def errors_by_difficulty(rows: Sequence[Result], store: Store, where: str) -> list[PaperFigure | Absent]:
    """The error of each method where the float network is right, and where it is wrong; means over seeds.

    HAST's Figure 2b has ten bins of 1 - p. The measurement of the float network keeps its predictions and no p, so
    there are the two bins that it tells: p of the label was the largest, or it was not.
    """
    title, why = f"error-by-difficulty {where}", "no done result says which images were right"

    @cache
    def right(key: str) -> "np.ndarray | str":
        return _float_right(store, key)

    names = names_of(map(Row.of, rows))
    bars: list[Bar] = []
    for (method, column), group in grouped(row for row in rows if row.status == "done" and row.correct).items():
        found: list[dict[str, tuple[float, int]]] = []
        for row in group:
            of_float = right(row.keys.get(Baseline.kind, ""))
            errors = of_float if isinstance(of_float, str) else _errors(row, of_float)
            if isinstance(errors, str):
                why = errors
            else:
                found.append(errors)
        for images in (EASY, HARD):
            parts = [errors[images] for errors in found if images in errors]
            if parts:
                error = round(sum(part[0] for part in parts) / len(parts), 3)
                bars.append(Bar(names[method].words, column.scheme, images, error, parts[0][1], len(parts)))
    return [_figure(title, where, bars) if bars else Absent(title, why)]


def _figure(title: str, where: str, bars: Sequence[Bar]) -> PaperFigure:
    errors: dict[str, list[float]] = {}
    for bar in bars:
        if bar.images == EASY:
            errors.setdefault(bar.method, []).append(bar.error)
    methods, left_out = some(
        sorted(errors, key=lambda method: sum(errors[method]) / len(errors[method])), "methods", "best"
    )
    shown = [bar for bar in bars if bar.method in methods]
    counts = {bar.images: bar.among for bar in shown}
    color = name("images", [EASY, HARD]) | {"scale": {"domain": [EASY, HARD], "range": ["#0072b2", "#d55e00"]}}
    layer: Spec = {
        "mark": {"type": "bar"},
        "encoding": {
            "x": number("error", "error (%)", zero=True),
            "y": name("method", methods),
            "yOffset": name("images", [EASY, HARD]),
            "color": color,
            "tooltip": tips(*FIELDS),
        },
    }
    schemes = unique(bar.scheme for bar in shown)
    words = ", ".join(f"{images} ({counts[images]:,} images)" for images in counts)
    own_methods = {"resolve": {"scale": {"y": "independent"}}}
    spec = panels("scheme", schemes, [layer], {"step": 16}) | own_methods
    return PaperFigure.of(title, f"{where}: error by difficulty: {words}{left_out}", FIELDS, shown, spec)


def _float_right(store: Store, key: str) -> "np.ndarray | str":
    """The images that the float network has right, as packed bits, or why they are not known."""
    if not store.has(Baseline.kind, key):
        return f"the measurement of the float network is not in {store.home}"
    try:
        samples: Mapping[str, np.ndarray] = evaluations.read_samples(store.read(Baseline.kind, key))
    except (ZSQBenchError, OSError, ValueError) as error:
        return str(error)
    return samples.get(evaluations.CORRECT, "the float network has no value for each image")


def _errors(row: Result, of_float: "np.ndarray") -> dict[str, tuple[float, int]] | str:
    """Error in percent, and the number of images, of each bin that has some; or why they are not known."""
    count = row.data.get("evaluated") or 0
    if not count or len(of_float) != math.ceil(count / 8):
        return "the float network was measured on another number of images"
    easy = unpacked(base64.b64encode(of_float.tobytes()).decode(), count)
    right = unpacked(str(row.correct), count)
    bins = {EASY: easy, HARD: ~easy}
    return {
        images: (100 * float((~right[where]).mean()), int(where.sum())) for images, where in bins.items() if where.any()
    }
