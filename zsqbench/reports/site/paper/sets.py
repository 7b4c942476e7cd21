"""Calibration sets beside real images, by the diagnostics that the store has of them; means over seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.diagnosis import Undiagnosed
from zsqbench.reports.results import Result
from zsqbench.reports.site.charts import Spec
from zsqbench.reports.site.paper.figure import (
    COLORS,
    REAL,
    Absent,
    PaperFigure,
    name,
    number,
    panels,
    some,
    tips,
)
from zsqbench.steps.diagnose import Diagnose
from zsqbench.steps.generate import Generate
from zsqbench.store import Store, reading

Found = Mapping[str, Any]
"""The diagnostics of a set, as plain data."""

_QUANTILES = ("p5", "p25", "median", "p75", "p95")


@dataclass(frozen=True)
class Sets:
    """The diagnostics of all sets of a task and a network."""

    found: Mapping[str, Sequence[Found]]
    """By the name of the generator, those of its seeds."""
    why: str
    """Why there are none, or none of some."""

    @classmethod
    def of(cls, rows: Sequence[Result], store: Store) -> "Sets":
        """The sets of these rows, each once."""
        found: dict[str, list[Found]] = {}
        why = "no cell has a calibration set"
        for row in {row.keys[Generate.kind]: row for row in rows if Generate.kind in row.keys}.values():
            diagnosis = Diagnose.find(store, row)
            if isinstance(diagnosis, Undiagnosed):
                why = diagnosis.why
                continue
            try:
                with reading(diagnosis.key):
                    _check(diagnosis.data)
                    found.setdefault(str(row.generator), []).append(diagnosis.data)
            except CorruptArtifactError as error:
                why = str(error)
        return cls(found, why)

    def part(self, part: str) -> tuple[dict[str, list[Found]], str]:
        """The diagnostics in which sets have this part, and why others, or all, have it not."""
        having = {name: [each for each in found if each["set"][part] is not None] for name, found in self.found.items()}
        reasons = [each["set"]["absent"].get(part) for found in self.found.values() for each in found]
        why = next((reason for reason in reasons if reason), self.why)
        labels, _ = some([name for name, found in having.items() if found], "sets", "first")
        return {label: having[label] for label in labels}, why

    @property
    def left_out(self) -> str:
        """Words for a title if there are more sets than a figure has room for."""
        return some(list(self.found), "sets", "first")[1]

    def real(self, part: str) -> Found | None:
        """The real images that the largest set is compared with, if they have this part: others get as many."""
        real = [each["real"] for found in self.found.values() for each in found]
        having = [each for each in real if each is not None and each[part] is not None]
        return max(having, key=lambda each: each["images"], default=None)


def _check(found: Found) -> None:
    """Read all that figures take of diagnostics: an artifact may be none of ours."""
    for images in filter(None, (found["set"], found["real"])):
        counts = [images["difficulty"] and sum(images["difficulty"]["counts"])]
        counts += [images["class_balance"] and sum(images["class_balance"]["predicted"])]
        named = [(each["layer"], each["gap"]) for each in images["bn_gaps"] or ()]
        named += [(each["output"], each["quantiles"]) for each in images["output_ranges"] or ()]
        _ = images["images"], images["absent"], counts, named


def difficulty(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """How many images are how hard for the float network, 1 - p, in each set and in real images (HAST, Figure 2c).

    The paper measures that by quantized networks. A share is linear below 1 % and logarithmic above, as few images are
    hard.
    """
    title, (found, why) = f"difficulty {where}", sets.part("difficulty")
    rows: list[list[Any]] = []
    names = {label: f"{label}, by the {found[label][0]['set']['difficulty']['by']}" for label in found}
    for label, each in found.items():
        rows += _bins(names[label], label, [one["set"] for one in each])
        rows += _bins(names[label], REAL, [one["real"] for one in each if one["real"] and one["real"]["difficulty"]])
    if not rows:
        return [Absent(title, why)]
    scale = {"scale": {"type": "symlog", "constant": 1, "nice": False}, "axis": {"values": [0, 1, 3, 10, 30, 100]}}
    y = number("share", "share of images (%)") | scale
    start, end = number("from", "difficulty 1 - p"), {"field": "to"}
    layers: list[Spec] = [
        {
            "transform": [{"filter": f"datum.images === '{REAL}'"}],
            "mark": {"type": "rect", "color": "#bbb"},
            "encoding": {
                "x": start,
                "x2": end,
                "y": y,
                "y2": {"datum": 0},
                "tooltip": tips("images", "from", "to", "share"),
            },
        },
        {
            "transform": [{"filter": f"datum.images !== '{REAL}'"}],
            "mark": {"type": "line", "interpolate": "linear", "point": {"size": 20}, "color": "#0072b2"},
            "encoding": {
                "x": number("middle", "difficulty 1 - p"),
                "y": y,
                "tooltip": tips("images", "from", "to", "share"),
            },
        },
    ]
    spec = panels("panel", list(names.values()), layers, height=130)
    words = f"{where}: difficulty of each set (line) and of real images (bars){sets.left_out}"
    return [PaperFigure.of(title, words, ("panel", "images", "from", "to", "middle", "share"), rows, spec)]


def _bins(panel: str, images: str, parts: Sequence[Found]) -> Iterator[list[Any]]:
    """The share of images in each bin, over all seeds."""
    if not parts:
        return
    counts = [sum(bins) for bins in zip(*(part["difficulty"]["counts"] for part in parts), strict=True)]
    width, whole = 1 / len(counts), sum(counts)
    for place, count in enumerate(counts):
        low, high = place * width, (place + 1) * width
        share = 100 * count / whole if whole else 0.0
        yield [panel, images, *(round(value, 4) for value in (low, high, (low + high) / 2, share))]


def bn_gaps(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """How far each batch normalisation's statistics of images are from those that it stores (DGH, Figure 3)."""
    title, (found, why) = f"bn-gap {where}", sets.part("bn_gaps")
    lines = {label: [each["set"]["bn_gaps"] for each in parts] for label, parts in found.items()}
    rows = [
        [label, place, layers[0]["layer"], value]
        for label, parts in _with_real(lines, sets, "bn_gaps").items()
        for place, layers in enumerate(zip(*parts, strict=True), start=1)
        if (value := _mean(layer["gap"] for layer in layers))
    ]
    if not rows:
        return [Absent(title, why)]
    images = list(dict.fromkeys(row[0] for row in rows))
    spec: Spec = {
        "width": 480,
        "height": 260,
        "mark": {"type": "line", "point": {"size": 20}},
        "encoding": {
            "x": number("place", "batch normalisation, from the image on")
            | {"axis": {"tickMinStep": 1, "grid": False}},
            "y": number("gap", "gap, in stored deviations", log=True),
            "color": _colors(images),
            "strokeDash": {"condition": {"test": f"datum.images === '{REAL}'", "value": [4, 4]}, "value": [1, 0]},
            "tooltip": tips("images", "layer", "gap"),
        },
    }
    return [
        PaperFigure.of(
            title, f"{where}: BN gap by layer{sets.left_out}", ("images", "place", "layer", "gap"), rows, spec
        )
    ]


def output_ranges(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """Largest minus smallest output of each image: its quantiles in each set and in real images (DGH, Figure 4)."""
    title, (found, why) = f"output-range {where}", sets.part("output_ranges")
    lines = {label: [each["set"]["output_ranges"] for each in parts] for label, parts in found.items()}
    rows = [
        [
            label,
            outputs[0]["output"],
            *(_mean(values) for values in zip(*(o["quantiles"] for o in outputs), strict=True)),
        ]
        for label, parts in _with_real(lines, sets, "output_ranges").items()
        for outputs in zip(*parts, strict=True)
    ]
    rows = [row for row in rows if None not in row]
    if not rows:
        return [Absent(title, why)]
    images = list(dict.fromkeys(row[0] for row in rows))
    words = "largest - smallest output of an image"
    y, color = name("images", images), _colors(images)
    layers: list[Spec] = [
        {"mark": "rule", "encoding": {"x": number("p5", words, zero=True), "x2": {"field": "p95"}, "y": y}},
        {
            "mark": {"type": "bar", "size": 12},
            "encoding": {
                "x": number("p25", words, zero=True),
                "x2": {"field": "p75"},
                "y": y,
                "color": color | {"legend": None},
            },
        },
        {
            "mark": {"type": "tick", "color": "black", "size": 12, "thickness": 2},
            "encoding": {
                "x": number("median", words, zero=True),
                "y": y,
                "tooltip": tips("images", "output", *_QUANTILES),
            },
        },
    ]
    outputs = list(dict.fromkeys(row[1] for row in rows))
    spec = panels("output", outputs, layers, height={"step": 20})
    title_words = f"{where}: range of outputs, 5 to 95 % and 25 to 75 % of images{sets.left_out}"
    return [PaperFigure.of(title, title_words, ("images", "output", *_QUANTILES), rows, spec)]


def class_balance(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """How many images of each set the float network takes for each class."""
    title, (found, why) = f"class-balance {where}", sets.part("class_balance")
    lines = {label: [each["set"]["class_balance"]["predicted"] for each in parts] for label, parts in found.items()}
    real = sets.real("class_balance")
    if lines and real is not None:
        lines[REAL] = [real["class_balance"]["predicted"]]
    rows = []
    for label, parts in lines.items():
        counts = [sum(classes) for classes in zip(*parts, strict=True)]
        rows += [[label, place, round(100 * count / sum(counts), 3)] for place, count in enumerate(counts)]
    if not rows:
        return [Absent(title, why)]
    labels = list(lines)
    spec: Spec = {
        "width": 480,
        "height": {"step": 20},
        "mark": "rect",
        "encoding": {
            "x": {"field": "class", "type": "ordinal", "title": "predicted class", "axis": {"labelOverlap": True}},
            "y": name("images", labels),
            "color": number("share", "share (%)", zero=True) | {"scale": {"scheme": "viridis"}},
            "tooltip": tips("images", "class", "share"),
        },
    }
    return [
        PaperFigure.of(title, f"{where}: classes of each set{sets.left_out}", ("images", "class", "share"), rows, spec)
    ]


def _with_real(lines: Mapping[str, list[Any]], sets: Sets, part: str) -> dict[str, list[Any]]:
    real = sets.real(part)
    return {**lines, REAL: [real[part]]} if lines and real is not None else dict(lines)


def _mean(values: Any) -> float | None:
    """The mean of those that are numbers; none where there are none."""
    numbers = [value for value in values if value is not None]
    return float(f"{statistics.fmean(numbers):.5g}") if numbers else None


def _colors(images: Sequence[str]) -> Spec:
    return name("images", images) | {"scale": COLORS}
