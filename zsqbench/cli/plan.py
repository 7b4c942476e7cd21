"""`zsqbench plan`: say what a run would do and how long it may take, without running it."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.options import format_option, shard_option, suite_options
from zsqbench.cli.suite import tell_notes

if TYPE_CHECKING:
    from zsqbench.execution.budget import CellTime
    from zsqbench.execution.compiling import Saving
    from zsqbench.execution.estimates import Estimates
    from zsqbench.execution.plan import Plan, PlannedCell
    from zsqbench.execution.run import Run
    from zsqbench.execution.shards import Part
    from zsqbench.methods import Engine
    from zsqbench.steps import Step
    from zsqbench.suite import Cell


def _seconds(what: str) -> Callable[..., float | None]:
    """A callback for an option that is a duration."""

    def parse(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
        from zsqbench.durations import parse_duration

        return None if text is None else parse_duration(text, what)

    return parse


@click.command()
@suite_options
@shard_option
@click.option("--probe", is_flag=True, help="First run shortened steps, to measure times that are not known.")
@click.option(
    "--probe-time",
    default="60s",
    show_default=True,
    callback=_seconds("probe time"),
    help="Time for --probe.",
)
@click.option(
    "--budget", metavar="TIME", callback=_seconds("budget"), help="Say which cells fit into this time: 90s, 2h, 1h30m."
)
@click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time, as in `run`.")
@format_option
def plan(form: str, probe: bool, probe_time: float, budget: float | None, workers: int | None, **options: Any) -> int:
    """Show what a run of SUITE would do. List its cells, shared steps, cached steps, and the time of other steps."""
    from zsqbench.execution.engines import gpus
    from zsqbench.execution.estimates import Estimates
    from zsqbench.execution.timings import Timings
    from zsqbench.opening import engine_of, open_run, part_of

    this, cells = open_run(**options)
    part = part_of(this, cells, workers, lambda text: click.echo(text, err=True))
    if part is not None:
        cells = part.cells
    engine = engine_of(this, cells, workers)
    if probe:
        made = _probe(this, cells, engine.model_copy(update={"workers": 1}), probe_time)
    else:
        made = this.provisional_plan(cells)
    estimates = Estimates(Timings(this.store))
    on_cpu = this.config.device == "cpu" or (this.config.device == "auto" and not gpus())
    priced = _Priced.of(made, estimates, engine.slots(), budget, on_cpu, part)
    if form == "json":
        click.echo(json.dumps(priced.as_data(), indent=1))
    else:
        tell_notes(this.suite)
        click.echo("\n".join(priced.lines(str(options["suite"]))))
    return 0


def _probe(this: "Run", cells: "Sequence[Cell]", engine: "Engine", seconds: float) -> "Plan":
    """The plan after probing. One line says how many kinds of steps were probed."""
    from zsqbench.execution.probing import probe

    found = probe(this, cells, engine, seconds, lambda text: click.echo(text, err=True))
    for label, why in found.failed.items():
        click.echo(f"warning: cannot probe {label}: {why}", err=True)
    left = f"; there was no time for {found.left} more, see --probe-time" if found.left else ""
    click.echo(f"probed {found.learnt} kinds of steps in {found.seconds:.0f} s{left}", err=True)
    return found.plan


@dataclass(frozen=True)
class _Priced:
    """A plan with the time that its parts take."""

    made: "Plan"
    to_do: "Mapping[str, Step]"
    unfinished: Collection[int]
    estimates: "Estimates"
    workers: int
    budget: float | None
    saving: "Saving | None"
    """The time that compiling would save. None: not known, or nothing to save."""
    part: "Part | None" = None
    """The shard of the suite's cells. None: all cells."""

    @classmethod
    def of(
        cls,
        made: "Plan",
        estimates: "Estimates",
        workers: int,
        budget: float | None,
        on_cpu: bool,
        part: "Part | None" = None,
    ) -> "_Priced":
        from zsqbench.execution.compiling import saving

        unfinished = [planned for planned in made.cells if not made.is_finished(planned)]
        ids = {id(planned) for planned in unfinished}
        to_do = made.to_do(unfinished)
        saved = saving(to_do.values(), estimates, on_cpu=on_cpu)
        return cls(made, to_do, ids, estimates, workers, budget, saved, part)

    @cached_property
    def cells(self) -> "Sequence[CellTime]":
        """The time of each cell. It is computed only if it is shown."""
        from zsqbench.execution.budget import cell_times

        def seconds(step: "Step") -> float | None:
            estimate = self.estimates.of(step)
            return None if estimate is None else estimate.seconds

        return cell_times(self.made, seconds, self.workers, self.budget)

    def as_data(self) -> dict[str, object]:
        """All of it as plain data."""
        made, total = self.made, self.estimates.total(self.to_do.values())
        cells = [
            {
                "cell": planned.cell.name,
                "state": self._state(planned),
                "reason": planned.reason,
                "steps": planned.keys,
                "background": {kind: step.key for kind, step in planned.background.items()},
                "seconds": time.seconds,
                "fits": time.fits,
            }
            for planned, time in zip(made.cells, self.cells, strict=True)
        ]
        steps = [
            {
                "kind": step.kind,
                "key": step.key,
                "label": step.label,
                "needs": [need.key for need in step.needs],
                "state": self._state_of(step),
                "seconds": estimate and estimate.seconds,
                "basis": estimate and estimate.basis,
            }
            for step in made.steps.values()
            for estimate in [self.estimates.of(step) if step.key in self.to_do else None]
        ]
        by_basis = {str(basis): each for basis, each in total.seconds.items()}
        seconds = {"seconds": total.sum, **by_basis, "unknown_steps": total.unknown}
        return {
            "suite": self.made.suite.name,
            "cells": cells,
            "steps": steps,
            "pending": list(self.made.pending),
            "uninspected": list(self.made.uninspected),
            "notes": list(self.made.suite.notes),
            "time": seconds,
            "compiling": self.saving and self.saving.as_data(),
            "budget": self.budget,
            "share": self.part and self.part.share,
            "workers": self.workers,
        }

    def _state(self, planned: "PlannedCell") -> str:
        if id(planned) not in self.unfinished:
            return "done"
        if not planned.steps:
            return planned.status
        return "to do" if any(step.key in self.to_do for step in planned.steps.values()) else "cached"

    def _state_of(self, step: "Step") -> str:
        return "cached" if step.key in self.made.cached else "to do" if step.key in self.to_do else "not needed"

    def lines(self, suite: str) -> list[str]:
        """The plan as lines of text."""
        made = self.made
        lines = [f"{self.made.suite.name}: {self._counted_cells()}"]
        times = ["" for _ in made.cells] if self.budget is None else list(map(_told, self.cells))
        for planned, time in zip(made.cells, times, strict=True):
            reason = f"  ({planned.reason})" if planned.reason else ""
            lines.append(f"  {self._state(planned):10} {planned.cell.name}{time}{reason}")
        alone = sum(len(planned.named) + len(planned.background) for planned in made.cells)
        lines.append(f"{len(made.steps)} steps, shared by cells (without sharing: {alone}):")
        counts = Counter((step.kind, self._state_of(step)) for step in made.steps.values())
        for kind in dict.fromkeys(kind for kind, _ in counts):
            states = sorted((state, count) for (each, state), count in counts.items() if each == kind)
            lines.append(f"  {kind:9} " + ", ".join(f"{count} {state}" for state, count in states))
        for model in dict.fromkeys(self.made.pending):
            lines += [f"pending: {model} has not been loaded yet, so its cached steps are not known"]
        if self.made.uninspected:
            lines += [f"not yet known to be possible: cells that need {', '.join(self.made.uninspected)}"]
        total = self.estimates.total(self.to_do.values())
        lines.append(f"time: {total}{'; see --probe' if total.unknown else ''}")
        if self.saving is not None and self.saving.seconds > 0:
            lines.append(f"compiling: {self.saving}")
        return lines + (self._budget_lines(suite) if self.budget is not None else [])

    def _counted_cells(self) -> str:
        """The number of cells, and which part of all cells they are."""
        if self.part is None:
            return f"{len(self.made.cells)} cells"
        parts = f"{self.part.share:.0%} of the counted work, and the largest shard has {self.part.largest:.0%}"
        return f"{len(self.made.cells)} of {len(self.made.suite.selected)} cells, with {parts}"

    def _budget_lines(self, suite: str) -> list[str]:
        """The numbers of cells that fit into the budget, and the command that runs only these cells."""
        from zsqbench.durations import in_words
        from zsqbench.suite.selection import expression_for

        made = self.made
        asked = [time for time in self.cells if time.fits is not None]
        fitting = [time for time in asked if time.fits]
        unknown = sum(bool(time.unknown) for time in asked)
        done = max((time.done or 0.0 for time in fitting), default=0.0)
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        fit = f"{len(fitting)} of {len(asked)} cells fit into {in_words(self.budget or 0.0)} on {workers}"
        order = "cells are taken in the order of the suite; each costs the steps that no cell before it pays for"
        lines = [f"budget: {fit}, and take about {in_words(done)}; {order}"]
        if unknown:
            lines.append(f"  {unknown} do not fit because the time of their steps is unknown: see --probe")
        # a shard is a part of the cells that -k selects, so with a shard the expression has to select from all cells
        there = [time.cell for time in self.cells] if self.part is None else [cell.name for cell in made.suite.selected]
        expression = expression_for(there, [time.cell for time in fitting])
        if expression is not None:
            lines.append(f"  to run these alone: zsqbench run {suite} -k {json.dumps(expression)}")
        return lines


def _told(time: "CellTime") -> str:
    """The time of a cell, if there is a budget."""
    if time.fits is None:
        return ""
    seconds = "unknown" if time.seconds is None else f"{time.seconds:.0f} s"
    return f"  {seconds}, {'fits' if time.fits else 'does not fit'}"
