"""A figure: plain data, and a Vega-Lite spec that shows it (https://vega.github.io/vega-lite/docs/ has the form)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

GREY = "#888"
WIDTH, HEIGHT = 260, 200
"""Pixels of one panel."""
PANELS = 3
"""Panels side by side."""
COLORS: Spec = {"scheme": "tableau10"}
REAL = "real images"
"""How figures call the real images that sets are compared with."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a task and a network."""

    name: str
    """`sweep generator.images digits resnet20`."""
    title: str
    fields: tuple[str, ...]
    """Names of the fields of its data."""
    rows: Sequence[Sequence[Any]]
    """Their values."""
    spec: Spec
    """Without the data."""

    def complete(self) -> Spec:
        """The spec with its data, which stands for itself."""
        values = [dict(zip(self.fields, row, strict=True)) for row in self.rows]
        return {"data": {"values": values}, "title": {"text": self.title, "anchor": "start"}, **self.spec}


@dataclass(frozen=True)
class Absent:
    """A figure that there is not, and why."""

    name: str
    why: str


def panels(field: str, order: Sequence[str], layer: Sequence[Spec], height: int | Spec = HEIGHT) -> Spec:
    """Layers once for each value of a field; all panels have the same axes."""
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
