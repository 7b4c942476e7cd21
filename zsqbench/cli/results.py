"""`zsqbench leaderboard`, `show` and `results`: show rows. These commands need no plugin."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.options import (
    PATH,
    columns_option,
    data_root_option,
    format_option,
    plugin_options,
    rows_options,
)

if TYPE_CHECKING:
    from zsqbench.reports.frames import Form as FrameForm
    from zsqbench.reports.tables.axes import Axis
    from zsqbench.reports.tables.leaderboard import Form


@click.command()
@rows_options
@columns_option
@click.option(
    "--by",
    type=click.Choice(["task", "model", "scheme"]),
    default="task",
    show_default=True,
    help="Make one table for each of these.",
)
@click.option("--metric", metavar="NAME", help="Show this metric instead of the main metric of each task.")
@click.option(
    "--sort", metavar="COLUMN", help="Sort by this column, best first. COLUMN is a part of its head: 'hw/w4a4'."
)
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "html", "latex", "json"]), default="md", show_default=True
)
def leaderboard(
    suite: str,
    select: str | None,
    overrides: Sequence[str],
    home: Path,
    results: Path,
    columns: Sequence[str],
    by: "Axis",
    metric: str | None,
    sort: str | None,
    form: "Form",
) -> int:
    """Print the tables of SUITE from the rows of its runs. There is one table for each task, or see --by."""
    from zsqbench.opening import rows_of
    from zsqbench.reports.tables.leaderboard import leaderboard as make
    from zsqbench.reports.tables.tabulation import Layout

    rows = rows_of(suite, results, select, overrides, home)
    click.echo(make(rows, form, Layout(columns, by, metric, sort), home))
    return 0


@click.command("results")
@rows_options
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write to this file, which may exist.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "json"]),
    default="csv",
    show_default=True,
    help="parquet needs -o.",
)
def export_results(
    suite: str,
    output: Path | None,
    form: "FrameForm",
    select: str | None,
    overrides: Sequence[str],
    home: Path,
    results: Path,
) -> int:
    """Print or write the rows of SUITE for other tools. There is one row for each cell, one column for each value."""
    from zsqbench import api
    from zsqbench.errors import ZSQBenchError
    from zsqbench.reports.frames import render

    if form == "parquet" and output is None:
        raise ZSQBenchError("parquet cannot be printed as text; name a file to write with -o FILE")
    frame = api.results(suite, results=results, select=select, overrides=overrides, home=home)
    content = render(frame, form)
    if output is None:
        click.echo(content, nl=False)
        return 0
    try:
        output.write_bytes(content)
    except OSError as error:
        raise ZSQBenchError(f"cannot write {output}: {error.strerror}") from error
    click.echo(f"{output}: {len(frame)} rows, {len(frame.columns)} columns", err=True)
    return 0


@click.command()
@rows_options
@click.argument("cell", required=False, default="")
@click.option(
    "--layers",
    is_flag=True,
    help="Show the error of each tensor. It is measured now if the store lacks it, which may need --data-root.",
)
@data_root_option
@plugin_options
@format_option
def show(
    suite: str,
    cell: str,
    layers: bool,
    select: str | None,
    overrides: Sequence[str],
    data_root: Path | None,
    home: Path,
    results: Path,
    plugins: Sequence[Path],
    without: Sequence[str],
    form: str,
) -> int:
    """Show what is known of a CELL of SUITE. This is its row, and the findings of each step. -k may select the cell."""
    from zsqbench.api import analyze_cell
    from zsqbench.opening import find_row, rows_of
    from zsqbench.reports import cellpage
    from zsqbench.steps import KINDS, Analyze
    from zsqbench.store import Store

    row, store = find_row(rows_of(suite, results, select, overrides, home), cell), Store(home)
    if layers:
        analyze_cell(suite, row, home=home, data_root=data_root, plugins=plugins, without=without)
    shown = {kind: found for kind, job in KINDS.items() if (found := job.show(store, row)) is not None}
    if form == "json":
        data = {"row": row.model_dump(mode="json")} | {found.name: found.data for found in shown.values()}
        click.echo(json.dumps(data, indent=1))
        return 0
    if layers:  # last, because the user asked for it
        shown.pop(Analyze.kind, None)
        shown[Analyze.kind] = Analyze.show_layers(store, row)
    click.echo(cellpage.render(row))
    for text in (found.text for found in shown.values() if found.text):
        click.echo(f"\n{text}")
    if row.traceback:
        click.echo(f"\n{row.traceback}")
    return 0
