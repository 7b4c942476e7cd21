"""Loss terms around quantized networks: cosines of gradients, and eigenvalues of Hessians (HAST, Figure 6).

The paper measures cosines throughout the fine-tuning of a 3-bit ResNet-20. Here they are measured at the final network
of a cell, in eval mode. Cells that differ in epochs show the course. The figure is drawn on demand, because it needs
networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from zsqbench.reports.site.charts import Spec, Value
from zsqbench.reports.site.paper.figure import GREY, PaperFigure, name, number, panels, tips

if TYPE_CHECKING:
    from zsqbench.execution.landscape import Surroundings
    from zsqbench.quant.landscape import Spectrum

FIELDS = ("part", "cell", "terms", "x", "y")
COSINE, DENSITY, LARGEST = "cosine", "density", "largest"
"""Parts: a batch's cosine x; a density y at an eigenvalue x; the largest eigenvalue x."""

FLOOR = 1e-6
"""Densities are drawn down to this part of the highest density of a figure."""
WIDTH = 300
"""Pixels of the cosines."""
_TICKS = [sign * 10**power for power in range(7) for sign in (1, -1)]
_AROUND_ZERO: Spec = {
    "scale": {"type": "symlog", "constant": 1, "nice": False},
    "axis": {"values": [0, *_TICKS], "format": "~g"},
}
"""Linear up to 1 and logarithmic beyond, because the eigenvalues of terms differ by orders of magnitude."""


def landscape(found: "Mapping[str, Surroundings]", where: str) -> PaperFigure:
    """The measurements around the quantized networks of cells of one network, by the cells' names."""
    short = {cell: _short(cell, found) for cell in found}
    spectra = [spectrum for each in found.values() for spectrum in each.landscape.spectra.values()]
    floor = FLOOR * max(density for spectrum in spectra for density in spectrum.density)
    rows: list[list[Value]] = []
    for cell, each in found.items():
        for pair, cosines in each.landscape.cosines.items():
            rows += [[COSINE, short[cell], " and ".join(pair), round(cosine, 4), None] for cosine in cosines]
        for term, spectrum in each.landscape.spectra.items():
            rows += [[part, short[cell], term, x, y] for part, x, y in _density(spectrum, floor)]
    title = [f"{where}: cosines of gradients of loss terms, and eigenvalues of their Hessians", *_notes(found, short)]
    return PaperFigure.of(f"landscape {where}", "; ".join(title), FIELDS, rows, _spec(list(short.values())))


def _short(cell: str, cells: Mapping[str, object]) -> str:
    """The parts of a cell's name in which cells differ. For a single cell, all parts except task and network."""
    parts = [each.split(":") for each in cells]
    differing = [place for place in range(len(parts[0])) if len({each[place] for each in parts}) > 1]
    return ":".join(cell.split(":")[place] for place in differing) or cell.split(":", 2)[2]


def _notes(found: "Mapping[str, Surroundings]", short: Mapping[str, str]) -> Iterator[str]:
    unlabelled = [short[cell] for cell, each in found.items() if not each.has_labels]
    if unlabelled:
        which = "" if len(unlabelled) == len(found) else f" ({', '.join(unlabelled)})"
        yield f"CE is towards the float network's decisions{which}"
    unaligned = [short[cell] for cell, each in found.items() if "FA" not in each.landscape.spectra]
    if unaligned:
        yield "no FA: the network has no layers to align"


def _density(spectrum: "Spectrum", floor: float) -> Iterator[tuple[str, float, float]]:
    for eigenvalue, density in zip(spectrum.eigenvalues, spectrum.density, strict=True):
        yield DENSITY, float(f"{eigenvalue:.4g}"), max(density, floor)
    yield LARGEST, spectrum.largest, floor


def _spec(cells: Sequence[str]) -> Spec:
    return {
        "hconcat": [_cosines(cells), {"transform": [_only(DENSITY, LARGEST)], **_spectra(cells)}],
        "resolve": {"scale": {"color": "independent"}},
    }


def _only(*parts: str) -> Spec:
    return {"filter": {"field": "part", "oneOf": list(parts)}}


def _cosines(cells: Sequence[str]) -> Spec:
    """Small points are batches, and large ones their means."""
    x = number("x", "cosine of gradients")
    color = name("terms", [], "terms") | {"sort": None, "scale": {"scheme": "dark2"}}
    place: Spec = {"y": name("cell", cells), "yOffset": {"field": "terms", "sort": None}, "color": color}
    point: Spec = {"type": "point", "filled": True}
    return {
        "transform": [_only(COSINE)],
        "width": WIDTH,
        "height": {"step": 16, "for": "offset"},
        "layer": [
            {"mark": {"type": "rule", "color": GREY}, "encoding": {"x": {"datum": 0}}},
            {
                "mark": {**point, "size": 14, "opacity": 0.5},
                "encoding": {**place, "x": x, "tooltip": tips("terms", "x")},
            },
            {"mark": {**point, "size": 80}, "encoding": {**place, "x": x | {"aggregate": "mean"}}},
        ],
    }


def _spectra(cells: Sequence[str]) -> Spec:
    color = name("terms", ["CE", "KL", "FA"], "term")
    x, y = number("x", "eigenvalue") | _AROUND_ZERO, number("y", "density of eigenvalues", log=True)
    largest: Spec = {"transform": [_only(LARGEST)]}
    layers: list[Spec] = [
        {
            "transform": [_only(DENSITY)],
            "mark": {"type": "line", "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": color},
        },
        {
            **largest,
            "mark": {"type": "point", "shape": "triangle-up", "filled": True, "size": 50},
            "encoding": {"x": x, "y": y, "color": color, "tooltip": tips("terms", "x")},
        },
    ]
    return panels("cell", cells, layers)
