"""`zsqbench embedding`: draw calibration sets and real images as points, by the features of the float network."""

from pathlib import Path
from typing import Any

import click

from zsqbench.cli.options import PATH, data_root_option, rows_options


@click.command()
@rows_options
@click.option(
    "-o", "--output", type=PATH, default=Path("embedding.svg"), show_default=True, help="FILE.svg, .pdf, .png."
)
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="Images of each set, at most.")
@data_root_option
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A plugin file of your own (may be repeated).")
def embedding(suite: str, output: Path, **options: Any) -> int:
    """Draw calibration images of SUITE and real images as points. Images with similar features are near each other.

    The cells that -k selects must be of one network. The network is run over the images, and t-SNE lays out its
    features. The real images are those that the task offers for calibration. No evaluation image is read.
    """
    from zsqbench import api

    click.echo(api.embedding(suite, output, **options))
    return 0
