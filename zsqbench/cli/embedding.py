"""`zsqbench embedding`: calibration sets and real images as points, as the float network sees them."""

from pathlib import Path
from typing import Any

import click

from zsqbench.cli.options import PATH, data_root_option, rows_options


@click.command()
@rows_options
@click.option(
    "-o", "--output", type=PATH, default=Path("embedding.svg"), show_default=True, help="FILE.svg, .pdf, .png."
)
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="Most images of each set.")
@data_root_option
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A plugin file of your own (may be repeated).")
def embedding(suite: str, output: Path, **options: Any) -> int:
    """Draw the images of calibration sets of SUITE, and real ones, as points: near where the network sees them alike.

    The cells that -k selects must be of one network. The network is run over the images, and t-SNE lays its features
    out. Real images are those that a task hands out to calibrate on; none that is evaluated is read.
    """
    from zsqbench import api

    click.echo(api.embedding(suite, output, **options))
    return 0
