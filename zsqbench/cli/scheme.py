"""`zsqbench scheme`: show what schemes mean for the tensors of a network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.networks import load_network
from zsqbench.cli.options import data_root_option, format_option, plugin_options

if TYPE_CHECKING:
    from torch import nn

    from zsqbench.scheme import Scheme


@click.command("scheme")
@click.argument("schemes", metavar="SCHEME [SCHEME]", nargs=-1, required=True)
@click.argument("model")
@click.option("--suite", help="A suite (file or name). Its models and schemes may be named, too.")
@data_root_option
@plugin_options
@format_option
def scheme(schemes: Sequence[str], model: str, form: str, **options: Any) -> int:
    """Show the bits of each tensor of MODEL at a SCHEME. With two schemes, show where they differ.

    Only the structure of the network matters. It has random weights; nothing is downloaded and nothing is run.
    """
    from zsqbench.reports.bitwidths import difference, render, render_difference, tensor_map

    if len(schemes) > 2:  # noqa: PLR2004
        raise click.UsageError(f"expected one scheme or two, and a model; got {len(schemes)} schemes")
    parsed, module, input_size = _structure(schemes, model, **options)
    maps = [tensor_map(model, module, one, input_size) for one in parsed]
    if len(maps) == 1:
        click.echo(json.dumps(maps[0].as_data(), indent=1) if form == "json" else render(maps[0]))
    else:
        found = difference(*maps)
        click.echo(json.dumps(found.as_data(), indent=1) if form == "json" else render_difference(found))
    return 0


def _structure(
    schemes: Sequence[str],
    model: str,
    suite: str | None,
    data_root: Path | None,
    plugins: Sequence[Path],
    without: Sequence[str],
) -> "tuple[list[Scheme], nn.Module, tuple[int, int, int]]":
    """The parsed schemes, and the network with random weights and the size of its images."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.scheme import PLACEMENTS, parse_scheme
    from zsqbench.suite import find_suite, load_suite

    if suite is None and (plugins or without):
        raise ZSQBenchError("--plugin and --no-plugin are for the methods of a suite; name it with --suite")
    loaded = load_suite(find_suite(suite), plugins, without, data_root=data_root) if suite else None
    parsed = [parse_scheme(text, loaded.placements if loaded else PLACEMENTS) for text in schemes]
    pretrained = load_network(model, loaded, data_root, "none").pretrained
    return parsed, pretrained.module, pretrained.input_size
