"""Results along an axis (a swept option, the bits, or the placement of quantizers), with a line for each method.

An axis is found in rows. So it does not matter if variants were made by `each` or written by hand.
"""

import json
import re
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias

from zsqbench.reports.results import Result, flat, flat_method
from zsqbench.reports.site.charts import Spec, Value
from zsqbench.reports.site.paper.figure import COLORS, GREY, Absent, PaperFigure, name, number, panels, some, tips
from zsqbench.reports.tables.axes import Name, unique
from zsqbench.reports.tables.notes import METRICS
from zsqbench.suite import NO_GENERATOR

FIELDS = ("method", "panel", "x", "seed", "value", "float")
"""Fields of the data: a `Point` for each result."""

WIDE = 8
"""An axis whose largest value is this many times its smallest is logarithmic."""

_METHODS = ("generator", "quantizer")
_LINKS = ("start", "over")
_SCHEME = "scheme"
_PARTS = re.compile(r"(\d+)")
_NAMED = ("method", "version", "origin")
_key = json.JSONEncoder(sort_keys=True, default=str).encode
"""A value as a text for comparison."""

Option: TypeAlias = "Value | list[Option]"
"""The value of an option in the form of a row."""

Facts = dict[str, Option]
"""Options and their values, by names such as `generator.images`."""


@dataclass(frozen=True)
class Axis:
    """The axis of a figure."""

    name: str
    title: str
    x: Callable[[Result], Option]
    panel: Callable[[Result], str]
    facts: Callable[[Result], Facts]
    """The values that all results of one line share."""
    line: Callable[[Result], Hashable]
    """These values in a form for fast comparison of thousands of results."""
    order: Callable[[str], list[tuple[int, str]]] | None = None
    """The sorting of names on the axis. None: the order of the suite. Numbers are always sorted."""


class Point(NamedTuple):
    """A result on an axis."""

    method: str
    """The name of its line."""
    panel: str
    x: float | str
    seed: int | None
    value: float | None
    float_value: float | None
    """The metric of the float network."""


def option_sweeps(rows: Sequence[Result], where: str) -> list[PaperFigure | Absent]:
    """A figure for each option if some results differ only in this option.

    HAST, Figures 1 and 5, Table 8; DGH, Figures 1 and 5.
    """
    done = _done(rows)
    facts = {id(row): _options(row) for row in done}
    items = {at: frozenset((key, _key(value)) for key, value in of.items()) for at, of in facts.items()}
    values: dict[str, dict[str, Option]] = {}
    for of in facts.values():
        for option, value in of.items():
            values.setdefault(option, {})[_key(value)] = value
    options = [
        option
        for option, found in values.items()
        if len(found) > 1 and _is_option(option) and not any(map(_is_file, found.values()))
    ]

    def axis(option: str) -> Axis:
        return Axis(
            f"sweep {option}",
            _words(option),
            x=lambda row: facts[id(row)][option],
            panel=lambda row: row.scheme,
            facts=lambda row: {key: value for key, value in facts[id(row)].items() if key != option},
            line=lambda row: items[id(row)] - {(option, _key(facts[id(row)][option]))},
        )

    def having(option: str) -> list[Result]:
        return [row for row in done if option in facts[id(row)]]

    why = "no option is swept: no two results of one scheme differ in one option alone"
    figures = [_figure(having(option), axis(option), where, why) for option in options]
    return [figure for figure in figures if isinstance(figure, PaperFigure)] or [Absent(f"sweep {where}", why)]


def bits(rows: Sequence[Result], where: str) -> list[PaperFigure | Absent]:
    """Results over the bits of weights and activations, a panel for each placement (DGH, Figures 6 and 7)."""
    why = "no method has results at two widths of one placement"
    axis = Axis("bits", "bits", _bits, _placement, _changed, _changed_line, _natural)
    return [_figure([row for row in _done(rows) if "/" in row.scheme], axis, where, why)]


def placements(rows: Sequence[Result], where: str) -> list[PaperFigure | Absent]:
    """Results by placement (the tensors that are quantized), a panel for each width."""
    why = "no method has results at two placements with the same bits"
    axis = Axis("placements", "placement", _placement, _bits, _changed, _changed_line)
    return [_figure([row for row in _done(rows) if "/" in row.scheme], axis, where, why)]


def _figure(rows: Sequence[Result], axis: Axis, where: str, why: str) -> PaperFigure | Absent:
    """The figure of all lines along an axis, or why there is none."""
    lines = list(_lines(rows, axis))
    title = f"{axis.name} {where}"
    if not lines:
        return Absent(title, why)
    values: dict[str, list[float]] = {}
    for label, group in lines:
        values.setdefault(label, []).extend(row.value for row in group if row.value is not None)
    best, left_out = some(sorted(values, key=lambda label: -statistics.fmean(values[label])), "methods", "best")
    shown = [(label, row) for label, group in lines if label in best for row in group]
    points = [
        Point(label, axis.panel(row), place, row.seed, row.value, row.float_value)
        for (label, row), place in zip(shown, _places([axis.x(row) for _, row in shown]), strict=True)
    ]
    words, metric = f"{where}: results over {axis.title}{left_out}", str(shown[0][1].metric)
    return PaperFigure.of(title, words, FIELDS, points, _spec(axis, METRICS.get(metric, metric), points))


def _spec(axis: Axis, metric: str, points: Sequence[Point]) -> Spec:
    x, y = _across(axis, [point.x for point in points]), number("value", metric)
    color = name("method", unique(point.method for point in points)) | {"scale": COLORS}
    reach = {"y": {**y, "aggregate": "min"}, "y2": {"aggregate": "max", "field": "value"}}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": GREY},
            "encoding": {"y": number("float", metric) | {"aggregate": "max"}},
        },
        {"mark": {"type": "rule", "opacity": 0.6}, "encoding": {"x": x, **reach, "color": color}},
        {"mark": "line", "encoding": {"x": x, "y": {**y, "aggregate": "mean"}, "color": color}},
        {
            "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.7},
            "encoding": {"x": x, "y": y, "color": color, "tooltip": tips("method", "panel", "x", "seed", "value")},
        },
    ]
    return panels("panel", sorted({point.panel for point in points}, key=_natural), layers)


def _across(axis: Axis, places: Sequence[float | str]) -> Spec:
    """The horizontal channel: numbers in their order, or names."""
    numbers = sorted({place for place in places if not isinstance(place, str)})
    if numbers:
        log = numbers[0] > 0 and numbers[-1] / numbers[0] >= WIDE
        return number("x", axis.title, log=log) | {"axis": {"values": numbers, "format": "~g"}}
    names = unique(place for place in places if isinstance(place, str))
    order = sorted(names, key=axis.order) if axis.order else names
    return name("x", order, axis.title) | {"axis": {"labelAngle": -30}}


def _lines(rows: Sequence[Result], axis: Axis) -> Iterator[tuple[str, list[Result]]]:
    """The results of each method with at least two values on the axis in one panel, and a name for the method."""
    groups: dict[tuple[str, Hashable], list[Result]] = {}
    for row in rows:
        groups.setdefault((axis.panel(row), axis.line(row)), []).append(row)
    found = [group for group in groups.values() if len({_key(axis.x(row)) for row in group}) > 1]
    return zip(_names([group[0] for group in found], axis), found, strict=True)


def _names(rows: Sequence[Result], axis: Axis) -> list[str]:
    """A name for each line, from one of its rows: its methods, and facts that differ between lines of these methods."""
    alike: dict[str, list[Facts]] = {}
    for row in rows:
        alike.setdefault(_short(row), []).append(axis.facts(row))
    named = []
    for row in rows:
        others = alike[_short(row)]
        keys = dict.fromkeys(key for facts in others for key in facts if key != _SCHEME)
        differing = [key for key in keys if len({_key(facts.get(key)) for facts in others}) > 1]
        held = _options(row) | axis.facts(row)
        named.append(", ".join([_short(row), *(f"{_words(key)} {_text(held.get(key))}" for key in differing)]))
    return named


def _options(row: Result) -> Facts:
    """Every option of every method of a row with its effective value, the settings, and the scheme."""
    return _facts(row, "options") | {_SCHEME: row.scheme}


def _changed(row: Result) -> Facts:
    """The options that the suite set. Other effective values may depend on the scheme."""
    return _facts(row, "changed")


def _changed_line(row: Result) -> str:
    return _key(_changed(row))


def _facts(row: Result, which: str) -> Facts:
    found: Facts = dict(flat("settings", row.settings))
    for axis in _METHODS:
        method = row.methods.get(axis)
        if method is not None:
            found |= flat_method(axis, _without_links(method, which))
    return found


def _without_links(method: Mapping[str, Any], which: str) -> dict[str, Any]:
    """A method that names another method by its identity, not by its name in the suite."""
    others = {link: _without_links(method[link], which) for link in _LINKS if link in method}
    options = {option: value for option, value in method.get(which, {}).items() if option not in others}
    named = {key: method[key] for key in ("method", "version") if key in method}
    return {**named, "options": options, **others}


def _is_option(key: str) -> bool:
    return key != _SCHEME and key.rpartition(".")[2] not in _NAMED


def _done(rows: Sequence[Result]) -> list[Result]:
    return [row for row in rows if row.status == "done" and row.value is not None]


def _is_file(value: Option) -> bool:
    """True for a file. A file is not a point on an axis."""
    return isinstance(value, str) and PurePath(value).is_absolute()


def _short(row: Result) -> str:
    """The methods of a row by their own names, because its labels may contain a value of the sweep."""
    generator, quantizer = (row.methods.get(axis, {}).get("method") for axis in _METHODS)
    return Name(generator or row.generator or NO_GENERATOR, quantizer or row.quantizer).words


def _placement(row: Result) -> str:
    return row.scheme.rpartition("/")[0]


def _bits(row: Result) -> str:
    return row.scheme.rpartition("/")[2]


def _words(key: str) -> str:
    return key.partition(".")[2].replace("_", " ")


def _text(value: Option) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _places(values: Sequence[Option]) -> Sequence[float | str]:
    """The positions of values on an axis: the values if all are numbers, or else texts."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else [_text(value) for value in values]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts w2a4 before w10a4."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.split(text)]
