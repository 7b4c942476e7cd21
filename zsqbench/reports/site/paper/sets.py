"""Calibration sets beside real images, from diagnostics in the store, as means over seeds."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.results import Result
from zsqbench.reports.site.charts import Spec, Value
from zsqbench.reports.site.paper.diagnosed import QUANTILES, Diagnosed, Difficulty, Images, OfLayer
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
from zsqbench.reports.tables.axes import unique
from zsqbench.steps.diagnose import Diagnose
from zsqbench.steps.generate import Generate
from zsqbench.store import NoArtifact, Store, reading

T = TypeVar("T")


@dataclass(frozen=True)
class Compared(Generic[T]):
    """A part of the diagnostics, such as BN gaps, of sets and of real images."""

    sets: Mapping[str, Sequence[T]]
    """The part of each seed, by the generator's name, for the sets that have it and fit into a figure."""
    beside: Mapping[str, Sequence[T]]
    """The part of the real images with which these sets are compared, by the same names."""
    real: T | None
    """The part of the real images for the largest set. Other sets are compared with as many images as they have."""
    why: str
    """Why there are none, or none of some."""

    @property
    def lines(self) -> dict[str, Sequence[T]]:
        """The parts of sets, then the part of real images. Empty: there are no sets."""
        real = [] if self.real is None else [self.real]
        return {**self.sets, REAL: real} if self.sets and real else dict(self.sets)


@dataclass(frozen=True)
class Sets:
    """The diagnostics of all sets of a task and a network."""

    found: Mapping[str, Sequence[Diagnosed]]
    """The diagnostics of each seed, by the generator's name."""
    why: str
    """Why there are none, or none of some."""

    @classmethod
    def of(cls, rows: Sequence[Result], store: Store) -> "Sets":
        """The sets of these rows, each once."""
        found: dict[str, list[Diagnosed]] = {}
        why = "no cell has a calibration set"
        for row in {row.keys[Generate.kind]: row for row in rows if Generate.kind in row.keys}.values():
            diagnosis = Diagnose.find(store, row)
            if isinstance(diagnosis, NoArtifact):
                why = diagnosis.why
                continue
            try:
                with reading(diagnosis.key):
                    found.setdefault(str(row.generator), []).append(Diagnosed.of(diagnosis.data))
            except CorruptArtifactError as error:
                why = str(error)
        return cls(found, why)

    def part(self, name: str, take: Callable[[Images], T | None]) -> Compared[T]:
        """The part that `take` returns. Diagnostics without it have the reason under its name."""
        sets: dict[str, list[T]] = {}
        beside: dict[str, list[T]] = {}
        for label, found in self.found.items():
            for each in found:
                if (own := take(each.of_set)) is not None:
                    sets.setdefault(label, []).append(own)
                    beside.setdefault(label, []).extend(_taken(take, [each.real]))
        every = [each for found in self.found.values() for each in found]
        largest = sorted((each.real for each in every if each.real is not None), key=lambda real: -real.count)
        reasons = [each.of_set.absent.get(name) for each in every]
        why = next((reason for reason in reasons if reason), self.why)
        labels, _ = some(list(sets), "sets", "first")
        return Compared({label: sets[label] for label in labels}, beside, next(iter(_taken(take, largest)), None), why)

    @property
    def left_out(self) -> str:
        """Words for a title if there are more sets than fit into a figure."""
        return some(list(self.found), "sets", "first")[1]


def _taken(take: Callable[[Images], T | None], images: Iterable[Images | None]) -> list[T]:
    """The part of each diagnostics that has it."""
    return [part for each in images if each is not None and (part := take(each)) is not None]


def difficulty(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """The distribution of difficulty for the float network, 1 - p, in each set and in real images (HAST, Figure 2c).

    The paper measures difficulty with quantized networks. The axis of shares is linear below 1 % and logarithmic above,
    because few images are hard.
    """
    title, part = f"difficulty {where}", sets.part("difficulty", lambda images: images.difficulty)
    rows: list[list[Value]] = []
    names = {label: f"{label}, by the {each[0].by}" for label, each in part.sets.items()}
    for label, each in part.sets.items():
        rows += _bins(names[label], label, each)
        rows += _bins(names[label], REAL, part.beside[label])
    if not rows:
        return [Absent(title, part.why)]
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


def _bins(panel: str, images: str, parts: Sequence[Difficulty]) -> Iterator[list[Value]]:
    """The share of images in each bin, over all seeds."""
    if not parts:
        return
    counts = [sum(bins) for bins in zip(*(part.counts for part in parts), strict=True)]
    width, whole = 1 / len(counts), sum(counts)
    for place, count in enumerate(counts):
        low, high = place * width, (place + 1) * width
        share = 100 * count / whole if whole else 0.0
        yield [panel, images, *(round(value, 4) for value in (low, high, (low + high) / 2, share))]


def bn_gaps(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """The distance of each batch normalisation's statistics of images from its stored statistics (DGH, Figure 3)."""
    title, part = f"bn-gap {where}", sets.part("bn_gaps", lambda images: images.bn_gaps)
    rows = [row for row in _layer_rows(part) if row[-1]]  # a logarithmic axis has no 0
    if not rows:
        return [Absent(title, part.why)]
    axes = (
        number("place", "batch normalisation, from the image on"),
        number("gap", "gap, in stored deviations", log=True),
    )
    return [_by_layer(title, f"{where}: BN gap by layer{sets.left_out}", rows, *axes)]


def patch_entropies(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """The entropy of patch similarities in each block of a network without batch normalisation."""
    title, part = f"patch-entropy {where}", sets.part("patch_similarities", lambda images: images.patch_entropies)
    rows = _layer_rows(part)
    if not rows:
        return [Absent(title, part.why)]
    axes = number("place", "block, from the image on"), number("entropy", "entropy of patch similarities")
    return [_by_layer(title, f"{where}: entropy of patch similarities by block{sets.left_out}", rows, *axes)]


def _layer_rows(part: Compared[tuple[OfLayer, ...]]) -> list[list[Value]]:
    """Rows [images, place, layer, number] with finite numbers, as means over seeds."""
    return [
        [label, place, layers[0].layer, value]
        for label, parts in part.lines.items()
        for place, layers in enumerate(zip(*parts, strict=True), start=1)
        if (value := _mean(layer.value for layer in layers)) is not None
    ]


def _by_layer(title: str, words: str, rows: list[list[Value]], x: Spec, y: Spec) -> PaperFigure:
    """A line for each set over the layers of rows [images, place, layer, number]."""
    images, of_layer = unique(str(row[0]) for row in rows), str(y["field"])
    spec: Spec = {
        "width": 480,
        "height": 260,
        "mark": {"type": "line", "point": {"size": 20}},
        "encoding": {
            "x": x | {"axis": {"tickMinStep": 1, "grid": False}},
            "y": y,
            "color": _colors(images),
            "strokeDash": {"condition": {"test": f"datum.images === '{REAL}'", "value": [4, 4]}, "value": [1, 0]},
            "tooltip": tips("images", "layer", of_layer),
        },
    }
    return PaperFigure.of(title, words, ("images", "place", "layer", of_layer), rows, spec)


def output_ranges(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """Largest minus smallest output of each image: its quantiles in each set and in real images (DGH, Figure 4)."""
    title, part = f"output-range {where}", sets.part("output_ranges", lambda images: images.output_ranges)
    rows: list[list[Value]] = [
        [label, ranges[0].output, *map(_mean, zip(*(each.quantiles for each in ranges), strict=True))]
        for label, parts in part.lines.items()
        for ranges in zip(*parts, strict=True)
    ]
    rows = [row for row in rows if None not in row]
    if not rows:
        return [Absent(title, part.why)]
    images = unique(str(row[0]) for row in rows)
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
                "tooltip": tips("images", "output", *QUANTILES),
            },
        },
    ]
    outputs = unique(str(row[1]) for row in rows)
    spec = panels("output", outputs, layers, height={"step": 20})
    title_words = f"{where}: range of outputs, 5 to 95 % and 25 to 75 % of images{sets.left_out}"
    return [PaperFigure.of(title, title_words, ("images", "output", *QUANTILES), rows, spec)]


def class_balance(sets: Sets, where: str) -> list[PaperFigure | Absent]:
    """The share of images of each set that the float network assigns to each class."""
    title, part = f"class-balance {where}", sets.part("class_balance", lambda images: images.class_balance)
    rows: list[list[Value]] = []
    for label, parts in part.lines.items():
        counts = [sum(classes) for classes in zip(*parts, strict=True)]
        rows += [[label, place, round(100 * count / sum(counts), 3)] for place, count in enumerate(counts)]
    if not rows:
        return [Absent(title, part.why)]
    spec: Spec = {
        "width": 480,
        "height": {"step": 20},
        "mark": "rect",
        "encoding": {
            "x": {"field": "class", "type": "ordinal", "title": "predicted class", "axis": {"labelOverlap": True}},
            "y": name("images", list(part.lines)),
            "color": number("share", "share (%)", zero=True) | {"scale": {"scheme": "viridis"}},
            "tooltip": tips("images", "class", "share"),
        },
    }
    return [
        PaperFigure.of(title, f"{where}: classes of each set{sets.left_out}", ("images", "class", "share"), rows, spec)
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are numbers. None: there are no numbers."""
    numbers = [value for value in values if value is not None]
    return float(f"{statistics.fmean(numbers):.5g}") if numbers else None


def _colors(images: Sequence[str]) -> Spec:
    return name("images", images) | {"scale": COLORS}
