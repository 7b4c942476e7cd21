"""`zsqbench compare`: two methods on the same images, with a gate for CI."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.exitcodes import EXIT_GATE
from zsqbench.cli.options import PATH, home_option, overrides_option, results_option

if TYPE_CHECKING:
    from zsqbench.reports.comparison.page import Form


@click.command()
@click.argument("suite")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@overrides_option
@home_option
@results_option
@click.option("--other", type=PATH, metavar="FOLDER", help="Take the rows of B from this folder instead of --results.")
@click.option(
    "--margin",
    type=float,
    metavar="POINTS",
    help="Exit with 1 unless B is surely less than POINTS worse than A.",
)
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
def compare(
    suite: str,
    a: str,
    b: str,
    overrides: Sequence[str],
    home: Path,
    results: Path,
    other: Path | None,
    margin: float | None,
    form: "Form",
) -> int:
    """Compare the methods A and B of SUITE image by image. Show if B is better, by how much, and which images flip.

    A and B are names of cells, parts of names, or expressions like those of -k. Each of the two selects one method in
    each column of the table, with all its seeds.
    """
    from zsqbench.api import compare as make
    from zsqbench.reports.comparison.page import gate_line, left_out_lines, render

    found = make(suite, a, b, home=home, results=results, other=other, overrides=overrides, margin=margin)
    click.echo(render(found, form))
    if form == "json":
        for line in left_out_lines(found):
            click.echo(line, err=True)
    for pair in found.failing:
        click.echo(gate_line(pair), err=True)
    return EXIT_GATE if found.failing else 0
