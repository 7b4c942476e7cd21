"""`zsqbench reproduce`: show a table of a paper beside measured values, with a verdict on each value."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS, EXIT_GATE, EXIT_SIGNAL
from zsqbench.cli.options import (
    PATH,
    WithSlurmOptions,
    data_root_option,
    device_option,
    engine_options,
    format_option,
    home_option,
    overrides_option,
    plugin_options,
    results_option,
)

if TYPE_CHECKING:
    from zsqbench.opening import OpenedReproduction
    from zsqbench.reports.reproduction.reproduction import Reproduction


@click.command(cls=WithSlurmOptions)
@click.argument("paper")
@click.argument("table")
@click.argument("row", required=False)
@click.option("--run", "is_run", is_flag=True, help="First run the cells that can run on this machine.")
@click.option("--suite", type=PATH, help="Measure by this suite. Its names must be those of the paper's suite.")
@overrides_option
@data_root_option
@home_option
@results_option
@plugin_options
@engine_options
@device_option
@format_option
def reproduce(
    paper: str,
    table: str,
    row: str | None,
    is_run: bool,
    suite: Path | None,
    workers: int | None,
    engine: str,
    address: str | None,
    slurm: Mapping[str, str],
    form: str,
    **options: Any,
) -> int:
    """Show TABLE of PAPER beside measured values. Examples: `hast 1a`, `dgh 2`, any table of results/published.

    ROW selects values, as -k selects cells. The command uses the shipped suite for the table, or --suite. A paper
    takes days of a GPU, so nothing runs without --run. The command then says what the cells need, what is missing on
    this machine, what a run would do, how long it may take, and what existing rows say.

    Each value has a verdict: reached, not reached (by how much, with an interval), not comparable (other weights,
    budget or data) or not run (why). A value is "not reached" only if it was measured as the paper's suite asks. Exit
    code 1: a value is not reached, or a cell of the run failed.
    """
    from zsqbench import opening
    from zsqbench.errors import NothingSelectedError

    this = opening.open_reproduction(paper, table, row, suite, **options)
    described = _Description(this)
    if form == "text":
        click.echo("\n".join([*described.lines(), ""]))
    code = 0
    if is_run and this.run is not None and this.runnable:
        report = opening.execute(this.run, this.runnable, workers, engine, address=address, slurm=slurm)
        code = EXIT_FAILED_CELLS if report.failed else 0
        code = code if report.signal is None else EXIT_SIGNAL + report.signal
        for told in filter(None, (report.outdated, report.table_error)):
            click.echo(f"warning: {told}", err=True)
    found = this.look()
    click.echo(_rendered(found, described, form))
    if is_run and not this.runnable:
        raise NothingSelectedError(f"no cell of {paper} {table} can run here: {described.why_nothing_runs}")
    return code or (EXIT_GATE if "not reached" in found.counts else 0)


@dataclass(frozen=True)
class _Price:
    """The steps of the cells that can run here, and the time that the missing steps may take."""

    steps: int
    to_do: int
    time: str

    @classmethod
    def of(cls, this: "OpenedReproduction") -> Self:
        """The figures that `zsqbench plan` shows."""
        from zsqbench.execution.estimates import Estimates
        from zsqbench.execution.timings import Timings

        if this.run is None or not this.runnable:
            return cls(0, 0, "unknown: nothing can be planned here")
        made = this.run.provisional_plan(this.runnable)
        to_do = made.to_do([planned for planned in made.cells if not made.is_finished(planned)])
        return cls(len(made.steps), len(to_do), str(Estimates(Timings(this.run.store)).total(to_do.values())))


class _Description:
    """The text that the command prints before anything runs."""

    def __init__(self, this: "OpenedReproduction") -> None:
        self.this = this
        self.price = _Price.of(this)

    @property
    def why_nothing_runs(self) -> str:
        """The first reason why no cell can run."""
        needs = () if self.this.requirements is None else self.this.requirements.needs
        missing = next((need.missing for need in needs if need.missing), None)
        return missing or ("no suite measures it" if self.this.run is None else "no cell of the suite may run")

    def lines(self) -> Iterator[str]:
        """The same as text, line by line."""
        table, requirements = self.this.table, self.this.requirements
        yield f"{table.source.name}, table {table.table}"
        shipped = "no suite asks for this table" if table.paper is None else str(table.paper.path)
        yield f"shipped suite: {shipped}"
        if requirements is None:
            return
        if table.used is not None and (table.paper is None or table.used.path != table.paper.path):
            yield f"measured by: {table.used.path}"
        missing = list(dict.fromkeys(need.missing for need in requirements.needs if need.missing))
        yield from ["", "needs"]
        yield from (f"  {need.kind} {need.name}: {need.source}" for need in requirements.needs)
        yield from (f"  note: of {need.name}, {need.remark}" for need in requirements.needs if need.remark)
        yield from ["", "missing here", *(f"  {lack}" for lack in missing)]
        if not missing:
            yield "  nothing, as far as is known before networks are loaded"
        yield from ["", "plan", *(f"  {line}" for line in self._plan_lines())]

    def _plan_lines(self) -> Iterator[str]:
        from zsqbench.reports.suiterows import counted

        cells, runnable = self.this.table.cells, self.this.runnable
        impossible = sum(cell.reason is not None for cell in cells)
        also = f"; {impossible} cannot run on any machine" if impossible else ""
        yield f"{counted(len(cells), 'cell')}, of which {len(runnable)} can run here{also}"
        sets = {(cell.model, cell.generator, cell.seed) for cell in cells if cell.generator and cell.reason is None}
        networks = counted(len(cells) - impossible, "network to quantize")
        yield f"work: {counted(len(sets), 'set of images')}, {networks}"
        for name, budget in self.this.table.budgets.items():
            yield f"  {name}: " + (", ".join(f"{option} {value}" for option, value in budget.items()) or "no option")
        if runnable:
            yield f"steps: {self.price.steps}, of which {self.price.to_do} are to do"
        yield f"time: {self.price.time}"

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        requirements = self.this.requirements
        needs = [] if requirements is None else [vars(need) for need in requirements.needs]
        cells = {"cells": len(self.this.table.cells), "can_run": len(self.this.runnable)}
        return {"needs": needs, "plan": cells | vars(self.price) | {"budgets": self.this.table.budgets}}


def _rendered(found: "Reproduction", described: _Description, form: str) -> str:
    from zsqbench.reports.reproduction.page import data_of, text_of

    return json.dumps(data_of(found) | described.data(), indent=1) if form == "json" else text_of(found)
