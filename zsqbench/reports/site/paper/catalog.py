"""The list of figures. To add a figure, add a line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zsqbench.reports.results import Result
from zsqbench.reports.site.paper import lines, sets
from zsqbench.reports.site.paper.errors import errors_by_difficulty
from zsqbench.reports.site.paper.figure import Absent, PaperFigure
from zsqbench.reports.site.paper.sets import Sets
from zsqbench.store import Store

Figures = list[PaperFigure | Absent]


@dataclass(frozen=True)
class Kind:
    """A kind of figure."""

    name: str
    """The first word of its figures' names."""
    meaning: str
    paper: str
    """The figures and tables of papers that it follows."""
    make: Callable[["Material"], Figures]


@dataclass(frozen=True)
class Material:
    """The data for the figures of a task and a network."""

    rows: Sequence[Result]
    store: Store
    sets: Sets
    where: str
    """`digits resnet20`."""


KINDS = (
    Kind(
        "sweep",
        "accuracy over a swept option",
        "HAST, Figures 1 and 5, Table 8; DGH, Figures 1 and 5",
        lambda of: lines.option_sweeps(of.rows, of.where),
    ),
    Kind("bits", "accuracy over bits", "DGH, Figures 6 and 7", lambda of: lines.bits(of.rows, of.where)),
    Kind("placements", "accuracy by what is quantized", "", lambda of: lines.placements(of.rows, of.where)),
    Kind(
        "error-by-difficulty",
        "error on what is easy and on what is hard for the float network",
        "HAST, Figure 2b, in two bins",
        lambda of: errors_by_difficulty(of.rows, of.store, of.where),
    ),
    Kind(
        "difficulty",
        "how hard the images of each set are",
        "HAST, Figure 2c",
        lambda of: sets.difficulty(of.sets, of.where),
    ),
    Kind("bn-gap", "BN gap by layer", "DGH, Figure 3", lambda of: sets.bn_gaps(of.sets, of.where)),
    Kind(
        "patch-entropy",
        "entropy of patch similarities by block",
        "",
        lambda of: sets.patch_entropies(of.sets, of.where),
    ),
    Kind("output-range", "range of outputs", "DGH, Figure 4", lambda of: sets.output_ranges(of.sets, of.where)),
    Kind("class-balance", "classes of each set", "", lambda of: sets.class_balance(of.sets, of.where)),
)


def paper_figures(rows: Sequence[Result], store: Store) -> Figures:
    """All figures of rows of one task and one network, and why other figures cannot be drawn."""
    if not rows:
        return []
    material = Material(rows, store, Sets.of(rows, store), f"{rows[0].task} {rows[0].model}")
    return [figure for kind in KINDS for figure in kind.make(material)]
