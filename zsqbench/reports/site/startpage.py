"""The start page: verdicts, sections, and all cells in one table."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zsqbench.reports.site.pages import Listing, Page, Part, rounded
from zsqbench.reports.site.sections import COSTS, Section
from zsqbench.reports.site.source import Source, slug
from zsqbench.reports.suiterows import counted, named
from zsqbench.reports.tables.figures import find_figures
from zsqbench.reports.tables.tabulation import single_line
from zsqbench.suite import NO_GENERATOR

if TYPE_CHECKING:
    from zsqbench.reports.site.charts import Value

REASON = 120
"""Characters of a reason in the table of cells. The page of the cell has the complete reason."""

_DECIMALS = (2, 2, 2, 4)
"""Decimals of value, drop, seconds and size. A size may be a few kilobytes."""

_TEXTS = ("cell", "task", "network", "generator", "quantizer", "scheme", "seed", "status")


def start_page(source: Source, parts: Sequence[Section]) -> Page:
    """The page of a suite and its sections."""
    places = {row.cell: place for place, row in enumerate(source.rows)}
    return Page(
        title=source.suite,
        lead=list(_lead(source)),
        parts=[
            Part("In words", [line for part in parts for line in part.verdicts]),
            *(part.part(places) for part in parts),
            Part("All cells", listing=_listing(source)),
        ],
        data={name: columns for part in parts for name, columns in part.data.items()},
    )


def _lead(source: Source) -> Iterator[str]:
    """The number of cells, and the cells that are not done."""
    counts = Counter(row.status for row in source.rows)
    yield f"{counted(len(source.rows), 'cell')}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    if source.without_row:
        cells = counted(len(source.without_row), "cell")
        yield f"{cells} of the suite without a row yet, as no run has come to an end there: {named(source.without_row)}"
    random = sorted({row.model for row in source.rows if row.model_facts.get("random_weights")})
    if random:
        yield f"random weights: {named(random)} was never trained, so its numbers rank nothing"


def _listing(source: Source) -> Listing:
    """All cells, and their numbers."""
    figures = find_figures(COSTS, source.rows)
    rows: list[list[Value]] = [
        [
            *(row.cell, row.task, row.model, row.generator or NO_GENERATOR, row.quantizer, row.scheme),
            "-" if row.seed is None else str(row.seed),
            row.status,
            *(rounded(value) for value in (row.value, row.drop, *(figure.of(row) for figure in figures))),
            "" if row.status == "done" else single_line(row.reason)[:REASON],
        ]
        for row in source.rows
    ]
    heads = [*_TEXTS, "value", "drop", *(figure.head for figure in figures), "reason"]
    # a column with the same text for all cells has no information
    kept = [at for at in range(len(heads)) if at == 0 or len({row[at] for row in rows}) > 1]
    digits = dict(zip(range(len(_TEXTS), len(heads) - 1), _DECIMALS, strict=True))
    return Listing(
        heads=[heads[at] for at in kept],
        rows=[[row[at] for at in kept] for row in rows],
        numbers={place: digits[at] for place, at in enumerate(kept) if at in digits},
        choices=[place for place, at in enumerate(kept) if 0 < at < len(_TEXTS)],
        pages={at: page for at, (cell, page) in enumerate(source.pages.items()) if page != slug(cell)},
    )
