"""`zsqbench run`: make what is not there yet, and print the leaderboard."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS, EXIT_SIGNAL
from zsqbench.cli.options import columns_option, device_option, suite_options
from zsqbench.cli.suite import tell_notes


@click.command()
@suite_options
@click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time; 0 runs in this process.")
@click.option("--engine", default="pool", show_default=True, help="Where steps run: an installed engine.")
@device_option
@click.option(
    "--isolation",
    type=click.Choice(["auto", "step", "worker"]),
    default="auto",
    show_default=True,
    help="Steps that get a fresh process: those of methods that are not shipped with zsqbench, each, or none.",
)
@click.option(
    "--step-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time that one step may take; otherwise the suite's step_timeout, if any.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Host memory that one worker may take (Linux).",
)
@columns_option
@click.option("--quiet", is_flag=True, help="Only the table.")
def run(
    workers: int | None,
    engine: str,
    step_timeout: float | None,
    memory: float | None,
    columns: Sequence[str],
    quiet: bool,
    **options: Any,
) -> int:
    """Run what is not there yet of SUITE (a file, or the name of a shipped one) and print its leaderboard."""
    from zsqbench import api
    from zsqbench.errors import NothingSelectedError, ZSQBenchError

    if quiet:
        options["without"] = (*options["without"], "progress")
    this, cells = api.open_run(**options)
    tell_notes(this.suite)
    report = api.execute(this, cells, workers, engine, step_timeout, memory, columns)
    click.echo(report.table)  # after the progress display has left the terminal
    _warn_of_background(report.background_failures)
    if report.table_error:
        raise ZSQBenchError(report.table_error)
    if report.outdated:
        click.echo(f"warning: {report.outdated}: `zsqbench run {options['suite']}` does what is missing", err=True)
    if report.signal is not None:
        return EXIT_SIGNAL + report.signal
    if report.failed:
        return EXIT_FAILED_CELLS
    return NothingSelectedError.exit_code if report.nothing_ran else 0


def _warn_of_background(failures: Mapping[str, str]) -> None:
    """One line, however many there are; `show` has the reason of each."""
    if failures:
        label, why = next(iter(failures.items()))
        others = f"; so did {len(failures) - 1} others" if len(failures) > 1 else ""
        click.echo(f"warning: {label} failed: {why}{others}; results do not depend on it", err=True)
