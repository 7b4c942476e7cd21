"""`zsqbench merge`: join what several machines have made, each in a folder of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.exitcodes import EXIT_CONFLICT
from zsqbench.cli.options import PATH, home_option, results_option

if TYPE_CHECKING:
    from zsqbench.execution.merging import Conflict


@click.command()
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="DIR...")
@home_option
@results_option
def merge(folders: Sequence[Path], home: Path, results: Path) -> int:
    """Add artifacts and rows of each DIR to --home and --results. The result is as if all had run there.

    A DIR is a folder in which a run had its home (.zsqbench or home) and its rows (results). A merge overwrites
    nothing. If equal keys have different numbers, both are shown, the first stays, and the exit code is 1. After an
    interruption, run the merge again.
    """
    from zsqbench.api import merge as join

    report = join(folders, home=home, results=results)
    for merged in report.merged:
        click.echo(f"merged {merged.folder}: {merged.artifacts} artifacts and {merged.rows} rows are new")
    if not report.conflicts:
        return 0
    click.echo(f"\nnumbers of equal keys that differ; those here stay:\n\n{_table(report.conflicts)}")
    return EXIT_CONFLICT


def _table(conflicts: "Sequence[Conflict]") -> str:
    from tabulate import tabulate

    from zsqbench.reports.evidence import shortened

    rows = [[each.cell, each.metric, shortened(each.here), shortened(each.there), each.folder] for each in conflicts]
    return tabulate(rows, ["cell", "metric", "here", "there", "folder"], tablefmt="plain", disable_numparse=True)
