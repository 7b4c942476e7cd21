"""Options and arguments that several commands have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

SLURM = "--slurm-"
"""The prefix of the options that go to sbatch."""

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
    "-k", "select", metavar="EXPR", help="Take only cells whose names match, as in 'zeroq and not w8a8'."
)
shard_option = click.option(
    "--shard",
    metavar="N/M",
    help="Take the Nth of M parts of the cells, as 3/8. Every machine finds the same parts.",
)
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the suite."
)


def _names(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names between commas."""
    names = tuple(name.strip() for name in (text or "").split(",") if text is not None)
    if "" in names:
        raise click.BadParameter(f"{text!r} is not a list of names such as agreement,seconds,memory")
    return names


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is not one of auto, cpu, cuda and cuda:N")
    return device


class WithSlurmOptions(click.Command):
    """A command that takes `--slurm-NAME VALUE` for each option of sbatch, and passes these options as `slurm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Separate these options from the options that click knows."""
        slurm: dict[str, str] = {}
        others: list[str] = []
        words = iter(args)
        for word in words:
            if not word.startswith(SLURM):
                others.append(word)
                continue
            name, is_set, value = word.removeprefix(SLURM).partition("=")
            given = value if is_set else next(words, "")
            if not name or not given or (not is_set and given.startswith("--")):
                raise click.UsageError(f"{word} has no value; a flag of sbatch takes true, as in {SLURM}exclusive true")
            slurm[name] = given
        ctx.params["slurm"] = slurm
        return super().parse_args(ctx, others)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List these options after the others."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of --engine slurm"):
            formatter.write_dl([(f"{SLURM}NAME VALUE", "sbatch's option --NAME, as in --slurm-partition gpu.")])


device_option = click.option(
    "--device", callback=_check_device, default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
engine_options = _options(
    click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time; 0: no worker process."),
    click.option("--engine", default="pool", show_default=True, help="Where steps run: pool, ray, slurm, or another."),
    click.option("--address", metavar="HOST:PORT", help="Ray cluster; unset: RAY_ADDRESS or a local one."),
)
"""Options that say where steps run. A command with these options must be of the class WithSlurmOptions."""
columns_option = click.option(
    "--columns",
    callback=_names,
    metavar="NAME,...",
    help="Add columns beside each column of results: a metric (such as agreement), seconds, memory, size or recovered.",
)
rows_options = _options(click.argument("suite"), select_option, overrides_option, home_option, results_option)
"""Options that say which rows are meant."""
suite_options = _options(
    click.argument("suite"),
    select_option,
    overrides_option,
    data_root_option,
    home_option,
    results_option,
    plugin_options,
)
