"""`zsqbench landscape`: how loss terms of fine-tuning agree, and how curved they are, around quantized networks."""

from pathlib import Path
from typing import Any

import click

from zsqbench.cli.options import PATH, data_root_option, device_option, rows_options


@click.command()
@rows_options
@click.option(
    "-o", "--output", type=PATH, default=Path("landscape.svg"), show_default=True, help="FILE.svg, .pdf, .png."
)
@click.option("--images", type=click.IntRange(1), default=128, show_default=True, help="Images of each cell, at most.")
@data_root_option
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A plugin file of your own (may be repeated).")
@device_option
def landscape(suite: str, output: Path, **options: Any) -> int:
    """Draw loss terms of fine-tuning around quantized networks. Show how the terms agree, and how curved they are.

    The cells that -k selects must be of one network. The terms are cross-entropy (CE), distillation (KL) and alignment
    of features (FA). They are computed on the calibration images of each cell. The chart shows the cosines of their
    gradients and the eigenvalues of their Hessians. The command needs the extra `landscape`.
    """
    from zsqbench import api

    click.echo(api.landscape(suite, output, **options))
    return 0
