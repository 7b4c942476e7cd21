"""Charts as Vega-Lite specs. A browser and `zsqbench figure` draw the same charts.

https://vega.github.io/vega-lite/docs/ describes the form. This module does not know rows or artifacts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
"""A chart, or a part of one, in Vega-Lite's JSON."""

Value = str | float | int | bool | None
"""A cell of a table, or of the data of charts."""

MOST_SPREAD = 40
"""A chart of seeds has lines for at most so many methods: the best."""

MOST_PAIRS = 30
"""A chart of pairs compares at most so many methods: the best."""

_LABELS = {"labelLimit": 260, "titleFontWeight": "normal"}
CONFIG: Spec = {
    "axis": {**_LABELS, "gridOpacity": 0.35},
    "legend": {"labelLimit": 260, "symbolBaseFillColor": "#888", "symbolLimit": 60},
    "title": {"anchor": "start", "fontSize": 13},
    "font": "system-ui, 'DejaVu Sans', 'Liberation Sans', Arial, sans-serif",
}
FRONT = "#d55e00"
_LOG: Spec = {"type": "log", "nice": False, "padding": 24}
_FEW: Spec = {"tickCount": 6, "format": "~g"}
"""Ticks of a logarithmic axis that do not overlap."""


@dataclass(frozen=True)
class Columns:
    """Data of charts: names of fields, and the values of each row."""

    fields: tuple[str, ...]
    rows: Sequence[Sequence[Value]]

    def as_data(self) -> dict[str, object]:
        """Plain data, with each field name only once."""
        return {"fields": self.fields, "rows": self.rows}

    def records(self) -> list[dict[str, Value]]:
        """A mapping for each row, in the form of Vega-Lite."""
        return [dict(zip(self.fields, row, strict=True)) for row in self.rows]


RESULTS = (
    *("method", "generator", "quantizer", "scheme", "control", "value", "std", "drop", "seeds", "float"),
    *("seconds", "size", "text", "best", "front_seconds", "front_size"),
)
"""Fields of a method in a column. `text` is its number or its status. A front is true for points on it."""

SEEDS = ("method", "scheme", "seed", "value")
"""Fields of a result with one seed."""

PAIRS = ("scheme", "first", "second", "p")
"""Fields of two methods, the better one first. p is adjusted by Holm for all pairs of the column."""


@dataclass(frozen=True)
class Chart:
    """A chart: a spec without its data."""

    name: str
    """Its name for `zsqbench figure`. Empty: it is a chart of a single cell."""
    title: str
    spec: Spec
    data: str
    """The name of its data."""

    def complete(self, data: Mapping[str, Columns]) -> Spec:
        """The spec with its data. It needs nothing else."""
        return {"data": {"values": data[self.data].records()}, "title": self.title, "config": CONFIG, **self.spec}


def heat_map(name: str, title: str, data: str, schemes: Sequence[str], middle: float, metric: str) -> Chart:
    """Generators by quantizers, for each scheme. The best is bold. Numbers below `middle` are on dark colours."""
    number = {"condition": {"test": f"datum.value < {middle:g}", "value": "white"}, "value": "black"}
    is_done = {"filter": "isValid(datum.value)"}

    def texts(test: str, color: Spec, **style: Value) -> Spec:
        mark = {"type": "text", "fontSize": 11, "clip": False, **style}
        return {"transform": [{"filter": test}], "mark": mark, "encoding": {"text": {"field": "text"}, "color": color}}

    layers = [
        {
            "transform": [is_done],
            "mark": "rect",
            "encoding": {
                "color": {"field": "value", "type": "quantitative", "title": metric, "scale": {"scheme": "viridis"}}
            },
        },
        {"transform": [{"filter": "!isValid(datum.value)"}], "mark": {"type": "rect", "color": "#9995"}},
        texts("isValid(datum.value) && !datum.best", number),
        texts("datum.best", number, fontWeight="bold"),
        texts("!isValid(datum.value)", {"value": "#c33"}, fontSize=9),
    ]
    inside = {
        "width": {"step": 58},
        "height": {"step": 24},
        "encoding": {
            "x": {
                "field": "quantizer",
                "type": "nominal",
                "sort": None,
                "title": "quantizer",
                "axis": {"labelAngle": -35},
            },
            "y": {"field": "generator", "type": "nominal", "sort": None, "title": "generator"},
            "tooltip": _tips("generator", "quantizer", "text", "std", "drop", "seeds", "control"),
        },
        "layer": layers,
    }
    each = [
        {"title": scheme, "transform": [{"filter": {"field": "scheme", "equal": scheme}}], **inside}
        for scheme in schemes
    ]
    spec = {"concat": each, "columns": 2, "resolve": {"scale": {"color": "shared"}}}
    return Chart(name, title, spec, data)


def pareto(name: str, title: str, data: str, cost: str, words: str, metric: str, scheme: str | None = None) -> Chart:
    """The metric against a cost, with the front of data-free methods, and the float network as a dashed line.

    With one scheme, colours are generators. With all schemes, colours are schemes. With more than ten colours some are
    alike, and the text at the pointer names them.
    """
    chosen = [{"filter": {"field": "scheme", "equal": scheme}}] if scheme is not None else []
    valid = {"filter": f"isValid(datum.value) && datum.{cost} > 0"}
    color = "generator" if scheme is not None else "scheme"
    x = {"field": cost, "type": "quantitative", "title": words, "scale": _LOG, "axis": _FEW}
    y = {"field": "value", "type": "quantitative", "title": metric, "scale": {"zero": False}}
    on_front = [{"filter": f"datum.front_{cost}"}]
    tips = _tips("method", "scheme", "text", cost, "control")
    spec: Spec = {
        "width": 480,
        "height": 280,
        "transform": [*chosen, valid],
        "layer": [
            {
                "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#888"},
                "encoding": {"y": {"aggregate": "max", "field": "float", "type": "quantitative", "title": metric}},
            },
            {
                "transform": on_front,
                "mark": {"type": "line", "interpolate": "step-after", "color": FRONT, "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {"field": color, "type": "nominal", "sort": None, "scale": {"scheme": "tableau10"}},
                    "shape": {"field": "quantizer", "type": "nominal", "sort": None},
                    "tooltip": tips,
                },
            },
            {
                "transform": on_front,
                "mark": {"type": "text", "align": "center", "dy": 13, "fontSize": 10, "color": FRONT},
                "encoding": {"x": x, "y": y, "text": {"field": "method"}},
            },
        ],
    }
    return Chart(name, title, spec, data)


def spread(name: str, title: str, data: str, scheme: str, methods: Sequence[str], metric: str) -> Chart:
    """A point for each seed, and a line from the lowest to the highest, of the best methods in their order."""
    x: Spec = {"field": "value", "type": "quantitative", "title": metric, "scale": {"zero": False}}
    reach = {"x": {**x, "aggregate": "min"}, "x2": {"aggregate": "max", "field": "value"}}
    spec: Spec = {
        "width": 480,
        "height": {"step": 18},
        "transform": [
            {"filter": {"field": "scheme", "equal": scheme}},
            {"filter": {"field": "method", "oneOf": list(methods)}},
        ],
        "encoding": {"y": {"field": "method", "type": "nominal", "sort": list(methods), "title": None}},
        "layer": [
            {"mark": {"type": "rule", "color": "#888"}, "encoding": reach},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.8, "color": "#0072b2"},
                "encoding": {"x": x, "tooltip": _tips("method", "seed", "value")},
            },
        ],
    }
    return Chart(name, title, spec, data)


def significance(name: str, title: str, data: str, scheme: str, methods: Sequence[str]) -> Chart:
    """The p of each pair of the best methods. Significant differences are coloured."""
    levels = ["below 0.001", "below 0.01", "below 0.05", "not told apart"]
    first, second, third, rest = (f"'{level}'" for level in levels)
    level = f"datum.p < 0.001 ? {first} : datum.p < 0.01 ? {second} : datum.p < 0.05 ? {third} : {rest}"
    colors = {"domain": levels, "range": ["#08519c", "#4292c6", "#9ecae1", "#eeeeee"]}
    ink = {"condition": {"test": "datum.p < 0.01", "value": "white"}, "value": "black"}
    order = list(methods)
    short = "datum.p < 0.001 ? '<.001' : format(datum.p, '.2~g')"
    axis: Spec = {"type": "nominal", "sort": order, "scale": {"domain": order}}
    spec: Spec = {
        "width": {"step": 46},
        "height": {"step": 20},
        "transform": [
            {"filter": {"field": "scheme", "equal": scheme}},
            {"filter": {"field": "first", "oneOf": order}},
            {"filter": {"field": "second", "oneOf": order}},
            {"calculate": level, "as": "told"},
            {"calculate": short, "as": "text"},
        ],
        "encoding": {
            "x": {"field": "second", "title": "worse mean", "axis": {"labelAngle": -40}, **axis},
            "y": {"field": "first", "title": "better mean", **axis},
            "tooltip": _tips("first", "second", "p"),
        },
        "layer": [
            {
                "mark": "rect",
                "encoding": {"color": {"field": "told", "type": "nominal", "title": "p (Holm)", "scale": colors}},
            },
            {
                "mark": {"type": "text", "fontSize": 9},
                "encoding": {"text": {"field": "text"}, "color": ink},
            },
        ],
    }
    return Chart(name, title, spec, data)


def curves(title: str, data: str) -> Chart:
    """A small chart for each curve, with fields `curve`, `step` and `value`."""
    spec: Spec = {
        "facet": {"field": "curve", "type": "nominal", "sort": None, "title": None},
        "columns": 3,
        "spec": {
            "width": 300,
            "height": 130,
            "mark": {"type": "line", "point": {"size": 12}},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": None},
                "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
                "tooltip": _tips("curve", "step", "value"),
            },
        },
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
    }
    return Chart("", title, spec, data)


def unit_losses(title: str, data: str, stage: str) -> Chart:
    """The loss of each unit before and after its reconstruction: fields `stage`, `unit`, `when` and `loss`."""
    x = {"field": "loss", "type": "quantitative", "title": "loss", "scale": _LOG, "axis": _FEW}
    spec: Spec = {
        "width": 480,
        "height": {"step": 18},
        "transform": [{"filter": {"field": "stage", "equal": stage}}, {"filter": "datum.loss > 0"}],
        "encoding": {"y": {"field": "unit", "type": "nominal", "sort": None, "title": None}},
        "layer": [
            {"mark": {"type": "line", "color": "#888"}, "encoding": {"x": x, "detail": {"field": "unit"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "x": x,
                    "color": {"field": "when", "type": "nominal", "sort": ["before", "after"], "title": None},
                    "tooltip": _tips("unit", "when", "loss"),
                },
            },
        ],
    }
    return Chart("", title, spec, data)


def _tips(*fields: str) -> list[Spec]:
    numbers = {"value", "std", "drop", "seconds", "size", "p", "step", "loss"}
    return [
        {"field": name, "type": "quantitative", "format": ",.4~g"}
        if name in numbers
        else {"field": name, "type": "nominal"}
        for name in fields
    ]
