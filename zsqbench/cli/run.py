"""`zsqbench run`: make what is not there yet, and print the leaderboard."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS, EXIT_INTERRUPTED
from zsqbench.cli.options import suite_options
from zsqbench.cli.suite import open_suite, tell_notes

if TYPE_CHECKING:
    from zsqbench.execution.plan import PlannedCell
    from zsqbench.reports.results import Result


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda and cuda:N")
    return device


@click.command()
@suite_options
@click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time; 0 runs in this process.")
@click.option("--engine", default="pool", show_default=True, help="Where steps run: an installed engine.")
@click.option("--device", callback=_check_device, default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--quiet", is_flag=True, help="Only the table.")
def run(workers: int | None, engine: str, device: str, quiet: bool, **options: Any) -> int:
    """Run what is not there yet of SUITE (a file, or the name of a shipped one) and print its leaderboard."""
    from zsqbench.errors import NothingSelectedError, ZSQBenchError
    from zsqbench.reports.leaderboard import leaderboard
    from zsqbench.store import write_atomically

    if quiet:
        options["without"] = (*options["without"], "progress")
    this, cells = open_suite(device=device, **options)
    tell_notes(this.suite)
    if device.startswith("cuda:") and workers != 0:
        raise ZSQBenchError(f"--device {device} needs --workers 0; for the pool, set CUDA_VISIBLE_DEVICES instead")
    threads = max((cell.settings.threads for cell in cells), default=1)
    chosen: Any = this.suite.catalog.find("engine", "in_process" if workers == 0 else engine, "--engine").method
    report = this.execute(cells, chosen(workers=workers or None, threads=threads))
    rows = list(this.rows.read().values())
    table = leaderboard(rows, "md")
    path = this.results / f"{this.suite.name}.md"
    failure = None
    try:
        write_atomically(path, table + "\n")
    except OSError as error:
        failure = ZSQBenchError(f"cannot write {path}: {error.strerror}")
    this.notify("suite_finished", suite=this.suite, results=report.results, table=None if failure else str(path))
    click.echo(table)  # after the progress display has left the terminal
    _warn_of_undiagnosed(report.undiagnosed)
    if failure:
        raise failure
    if report.interrupted:
        return EXIT_INTERRUPTED
    if any(map(_failed, report.plan.cells, report.results)):
        return EXIT_FAILED_CELLS
    return 0 if any(planned.steps for planned in report.plan.cells) else NothingSelectedError.exit_code


def _warn_of_undiagnosed(undiagnosed: Mapping[str, str]) -> None:
    """One line, however many sets there are; `show` has the reason of each."""
    if undiagnosed:
        label, why = next(iter(undiagnosed.items()))
        others = f"; so did {len(undiagnosed) - 1} others" if len(undiagnosed) > 1 else ""
        click.echo(f"warning: {label} failed: {why}{others}; results do not depend on it", err=True)


def _failed(planned: "PlannedCell", result: "Result") -> bool:
    """Whether a cell ended otherwise than the suite file lets expect."""
    unexpected = result.status == "impossible" and planned.cell.reason is None
    return unexpected or result.status in {"failed", "interrupted"}
