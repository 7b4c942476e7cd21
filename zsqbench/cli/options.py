"""Options and arguments that several commands have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

SLURM = "--slurm-"
"""Options that begin so are options of sbatch."""

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


class WithSlurmOptions(click.Command):
    """A command that takes `--slurm-NAME VALUE` for each option of sbatch, and hands them on as `slurm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take these options out of the others, which click knows."""
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
        """Tell of them after the others."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of --engine slurm"):
            formatter.write_dl([(f"{SLURM}NAME VALUE", "sbatch's option --NAME, as in --slurm-partition gpu.")])


device_option = click.option(
    "--device", callback=_check_device, default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
engine_options = _options(
    click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time; 0 runs in this process."),
    click.option("--engine", default="pool", show_default=True, help="Where steps run: pool, ray, slurm, or another."),
    click.option("--address", metavar="HOST:PORT", help="The Ray of --engine ray; else RAY_ADDRESS, or its own."),
)
"""Where steps run; a command that has them is of the class WithSlurmOptions, too."""
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
