"""Options and arguments that several commands have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


PATH = click.Path(path_type=Path)
plugin_options = _options(
    click.option("--plugin", "plugins", multiple=True, type=PATH, help="A plugin file of your own (may be repeated)."),
    click.option("--no-plugin", "without", multiple=True, metavar="NAME", help="Leave an installed plugin out."),
)
home_option = click.option(
    "--home",
    type=PATH,
    default=Path(".zsqbench"),
    envvar="ZSQBENCH_HOME",
    show_default=True,
    help="Folder for artifacts and mlflow.db [env: ZSQBENCH_HOME].",
)
data_root_option = click.option(
    "--data-root", type=PATH, envvar="ZSQBENCH_DATA_ROOT", help="Folder of the data [env: ZSQBENCH_DATA_ROOT]."
)
results_option = click.option(
    "--results", type=PATH, default=Path("results"), show_default=True, help="Folder for rows and tables."
)
format_option = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
select_option = click.option(
    "-k", "select", metavar="EXPR", help="Only cells whose name matches, as in 'zeroq and not w8a8'."
)
shard_option = click.option(
    "--shard", metavar="N/M", help="Only the Nth of M parts of the cells, as 3/8; every machine finds the same parts."
)
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the suite."
)


def _names(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names between commas."""
    names = tuple(name.strip() for name in (text or "").split(",") if text is not None)
    if "" in names:
        raise click.BadParameter(f"{text!r} is no list of names such as agreement,seconds,memory")
    return names


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda and cuda:N")
    return device


device_option = click.option(
    "--device", callback=_check_device, default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
columns_option = click.option(
    "--columns",
    callback=_names,
    metavar="NAME,...",
    help="After each column of results one of each: a metric such as agreement, seconds, memory, size or recovered.",
)
rows_options = _options(click.argument("suite"), select_option, overrides_option, home_option, results_option)
"""All that says which rows are meant."""
suite_options = _options(
    click.argument("suite"),
    select_option,
    overrides_option,
    data_root_option,
    home_option,
    results_option,
    plugin_options,
)
