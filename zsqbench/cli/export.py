"""`zsqbench export`: write the quantized network of a cell as an ONNX file, and check it in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS
from zsqbench.cli.options import PATH, data_root_option, home_option, plugin_options, results_option
from zsqbench.export import MOST_OPSET, OPSET


@click.command()
@click.argument("suite")
@click.argument("cell")
@click.option("-o", "--output", type=PATH, required=True, help="The ONNX file to write.")
@click.option(
    "--check",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Images to compare; 0 disables it.",
)
@click.option(
    "--input",
    "taken",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="Input of the file: preprocessed images, or 8-bit pixels (it then holds mean and deviation).",
)
@click.option(
    "--weights",
    type=click.Choice(["int8", "int4"]),
    default="int8",
    show_default=True,
    help="How weights of up to 4 bits are stored. int4 takes half the space and computes in float.",
)
@click.option("--opset", type=click.IntRange(OPSET, MOST_OPSET), default=OPSET, show_default=True, help="ONNX's.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("CPUExecutionProvider",),
    show_default=True,
    help="An execution provider of ONNX Runtime (may be repeated).",
)
@data_root_option
@home_option
@results_option
@plugin_options
def export(
    suite: str,
    cell: str,
    output: Path,
    check: int,
    taken: Literal["float", "uint8"],
    weights: Literal["int8", "int4"],
    opset: int,
    providers: tuple[str, ...],
    without: Sequence[str],
    **places: Any,
) -> int:
    """Write the quantized network of a CELL of SUITE as ONNX. The file has integers, and a script beside it runs it.

    The file is compared with the simulation on the calibration images of the cell. A cell without such images is
    compared on noise. The exit code is 1 if the file does not compute what was measured.
    """
    from zsqbench.api import export_model as write
    from zsqbench.export.options import ExportOptions

    options = ExportOptions(check=max(check, 1), weights=weights, input=taken, opset=opset, providers=providers)
    made = write(suite, cell, output, options=options, checked=check > 0, without=without, **places)
    click.echo(f"{made.path}: {made.size_mb:.2f} MB")
    click.echo(f"{made.script}: runs it on an image")
    for line in made.lines:
        click.echo(f"- {line}")
    return EXIT_FAILED_CELLS if made.problems else 0
