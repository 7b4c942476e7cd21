"""A figure of a paper: a chart with its data, or why there is none, and parts of charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from zsqbench.reports.site.charts import Chart, Columns, Spec, Value

GREY = "#888"
WIDTH, HEIGHT = 260, 200
"""Pixels of one panel."""
PANELS = 3
"""Panels side by side."""
MOST = 20
"""The most methods or sets in a figure. More have no distinct colours."""
COLORS: Spec = {"scheme": "tableau20"}
REAL = "real images"
"""The name in figures of the real images for comparison."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a task and a network."""

    chart: Chart
    columns: Columns
    """The data of the chart, under the chart's name."""

    @classmethod
    def of(cls, name: str, title: str, fields: tuple[str, ...], rows: Sequence[Sequence[Value]], spec: Spec) -> Self:
        """A figure of this name, such as `sweep generator.images digits resnet20`."""
        return cls(Chart(name, title, spec, name), Columns(fields, rows))

    @property
    def name(self) -> str:
        """The name by which the user asks for it."""
        return self.chart.name


@dataclass(frozen=True)
class Absent:
    """A missing figure, and the reason."""

    name: str
    why: str


def some(names: Sequence[str], what: str, which: str) -> tuple[list[str], str]:
    """The first names that fit into a figure, and words for its title if there are more."""
    left_out = f" (the {which} {MOST} of {len(names)} {what})" if len(names) > MOST else ""
    return list(names[:MOST]), left_out


def panels(field: str, order: Sequence[str], layer: Sequence[Spec], height: int | Spec = HEIGHT) -> Spec:
    """Layers for each value of a field. All panels have the same axes."""
    return {
        "facet": {"field": field, "type": "nominal", "sort": list(order), "title": None},
        "columns": PANELS,
        "spec": {"width": WIDTH, "height": height, "layer": list(layer)},
    }


def number(field: str, title: str, *, log: bool = False, zero: bool = False) -> Spec:
    """A quantitative channel."""
    scale: Spec = {"type": "log", "nice": False} if log else {"zero": zero}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def name(field: str, order: Sequence[str], title: str | None = None) -> Spec:
    """A channel of names in this order."""
    return {"field": field, "type": "nominal", "sort": list(order), "title": title}


def tips(*fields: str) -> list[Spec]:
    """The text at the pointer."""
    return [{"field": each} for each in fields]
