"""`zsqbench run`: run the steps that are missing, and print the leaderboard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS, EXIT_SIGNAL
from zsqbench.cli.options import (
    WithSlurmOptions,
    columns_option,
    device_option,
    engine_options,
    shard_option,
    suite_options,
)
from zsqbench.cli.suite import tell_notes

if TYPE_CHECKING:
    from zsqbench.execution.run import Run, RunReport
    from zsqbench.reports.site.source import Origin


@click.command(cls=WithSlurmOptions)
@suite_options
@shard_option
@engine_options
@device_option
@click.option(
    "--isolation",
    type=click.Choice(["auto", "step", "worker"]),
    default="auto",
    show_default=True,
    help="Steps with a process of their own. auto: of methods not shipped with zsqbench; step: all; worker: none.",
)
@click.option(
    "--step-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit of one step. Unset: step_timeout of the suite, or else no limit.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Limit of the host memory of one worker (Linux).",
)
@columns_option
@click.option("--report", is_flag=True, help="Also write pages for a browser, RESULTS/NAME.report/index.html.")
@click.option("--quiet", is_flag=True, help="Print only the table.")
def run(
    workers: int | None,
    engine: str,
    address: str | None,
    slurm: Mapping[str, str],
    step_timeout: float | None,
    memory: float | None,
    columns: Sequence[str],
    report: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Run the missing steps of SUITE and print its leaderboard. SUITE is a file, or the name of a shipped suite."""
    from zsqbench import opening
    from zsqbench.errors import NothingSelectedError, ZSQBenchError

    if quiet:
        options["without"] = (*options["without"], "progress")
    this, cells = opening.open_run(**options)
    tell_notes(this.suite)
    done = opening.execute(this, cells, workers, engine, step_timeout, memory, columns, report, address, slurm)
    click.echo(done.table)  # after the progress display has left the terminal
    _warn_of_background(done.background_failures)
    if error := done.table_error or done.report_error:
        raise ZSQBenchError(error)
    if not quiet:
        _tell_of_shard(this, done)
        _tell_of_report(done, this.origin)
    if done.outdated:
        click.echo(f"warning: {done.outdated}: `zsqbench run {options['suite']}` does what is missing", err=True)
    if done.signal is not None:
        return EXIT_SIGNAL + done.signal
    if done.failed:
        return EXIT_FAILED_CELLS
    return NothingSelectedError.exit_code if done.nothing_ran else 0


def _tell_of_shard(this: "Run", done: "RunReport") -> None:
    """One line: how many of the cells were in the shard of this run."""
    if this.shard is not None:
        cells = f"{len(done.plan.cells)} of {len(this.suite.selected)} cells"
        click.echo(f"shard {this.shard}: {cells}; `zsqbench merge` joins what the shards have made", err=True)


def _tell_of_report(done: "RunReport", origin: "Origin | None") -> None:
    """One line: where the report is, or which command makes it."""
    from zsqbench.reports.site.recipe import report_command

    if done.report is not None:
        click.echo(f"report: {done.report}", err=True)
    elif origin is not None:
        click.echo(f"pages for a browser: {report_command(origin)}", err=True)


def _warn_of_background(failures: Mapping[str, str]) -> None:
    """One line for any number of failures. `show` has the reason of each."""
    if failures:
        label, why = next(iter(failures.items()))
        others = f"; so did {len(failures) - 1} others" if len(failures) > 1 else ""
        click.echo(f"warning: {label} failed: {why}{others}; results do not depend on it", err=True)
