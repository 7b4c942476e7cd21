"""`zsqbench export-images`: write the calibration set of a cell for other tools."""

from pathlib import Path
from typing import Any

import click

from zsqbench.cli.options import data_root_option, home_option, results_option


@click.command("export-images")
@click.argument("suite")
@click.argument("cell")
@click.argument("folder", type=click.Path(path_type=Path))
@data_root_option
@home_option
@results_option
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A plugin file of your own (may be repeated).",
)
def export_images(suite: str, cell: str, folder: Path, **options: Any) -> int:
    """Write the calibration images of a CELL into a FOLDER. The CELL is of SUITE, and the FOLDER must be new or empty.

    The folder then has PNGs, safetensors, and a file for the calibrators of onnxruntime, OpenVINO and TensorRT.
    """
    from zsqbench import api

    made = api.export_images(suite, cell, folder, **options)
    click.echo(f"{made.images} images are in {folder}, and README.md there says how to use them")
    if made.rounding is None:
        click.echo("there are no PNGs, because these have 1 or 3 channels")
    else:
        click.echo(f"PNGs: {made.rounding}")
    return 0
