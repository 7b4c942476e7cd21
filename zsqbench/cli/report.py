"""`zsqbench report` and `zsqbench figure`: write results as pages for a browser, and charts as files for a paper."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from zsqbench.cli.options import PATH, data_root_option, rows_options


@click.command()
@rows_options
@click.option("-o", "--output", type=PATH, help="The folder to write [default: RESULTS/NAME.report].")
@data_root_option
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A plugin file, for the commands on the pages.")
def report(suite: str, output: Path | None, **places: object) -> int:
    """Write the results of SUITE as pages for a browser. They open from disk, with verdicts, charts and cell pages.

    The command runs nothing, and leaves a folder alone that is not a report. Neither command nor pages use the network.
    """
    from zsqbench import api

    click.echo(api.report(suite, output, **places))  # type: ignore[arg-type]
    return 0


@click.command()
@rows_options
@click.argument("name", nargs=-1)
@click.option("-o", "--output", type=PATH, help="FILE.svg, FILE.pdf or FILE.png [default: NAME.svg].")
def figure(
    suite: str,
    name: Sequence[str],
    output: Path | None,
    select: str | None,
    overrides: Sequence[str],
    home: Path,
    results: Path,
) -> int:
    """Draw the chart NAME of the report of SUITE into a file. Without NAME, list the charts.

    A name is several words, as the report shows them: heatmap digits resnet20.
    """
    from zsqbench import api

    if not name:
        names = api.figures(suite, home=home, results=results, select=select, overrides=overrides)
        click.echo("\n".join(names))
        return 0
    words = " ".join(name)
    path = output or Path(re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-.") + ".svg")
    api.figure(suite, words, path, home=home, results=results, select=select, overrides=overrides)
    click.echo(path)
    return 0
