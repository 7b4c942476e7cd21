"""`zsqbench plan`: what a run would do, without doing it."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.options import format_option, suite_options
from zsqbench.cli.suite import tell_notes

if TYPE_CHECKING:
    from zsqbench.execution.plan import Plan, PlannedCell
    from zsqbench.execution.run import Run


@click.command()
@suite_options
@format_option
def plan(form: str, **options: Any) -> int:
    """Show what a run of SUITE would do: cells, shared steps, what is cached, and how long the rest may take."""
    from zsqbench.api import open_run

    this, cells = open_run(**options)
    planned, pending, uninspected = this.provisional_plan(cells)
    if form == "json":
        click.echo(json.dumps(plan_as_data(this, planned, pending, uninspected), indent=1))
    else:
        tell_notes(this.suite)
        _print_plan(this, planned, pending, uninspected)
    return 0


def plan_as_data(this: "Run", made: "Plan", pending: Sequence[str], uninspected: Sequence[str]) -> dict[str, Any]:
    """A plan as plain data: cells and steps, each with its state; steps to do with their estimated seconds."""
    from zsqbench.execution.timings import Timings

    timings = Timings(this.store)
    unfinished = {id(planned): planned for planned in made.cells if not made.is_finished(planned)}
    to_do = made.to_do(list(unfinished.values()))
    cells = [
        {
            "cell": planned.cell.name,
            "state": _state(planned, unfinished, to_do),
            "reason": planned.reason,
            "steps": planned.keys,
            "background": {kind: step.key for kind, step in planned.background.items()},
        }
        for planned in made.cells
    ]
    steps = [
        {
            "kind": step.kind,
            "key": step.key,
            "label": step.label,
            "needs": [need.key for need in step.needs],
            "state": "cached" if step.key in made.cached else "to do" if step.key in to_do else "not needed",
            "seconds": timings.estimate(step) if step.key in to_do else None,
        }
        for step in made.steps.values()
    ]
    return {
        "suite": this.suite.name,
        "cells": cells,
        "steps": steps,
        "pending": list(pending),
        "uninspected": list(uninspected),
        "notes": list(this.suite.notes),
    }


def _state(planned: "PlannedCell", unfinished: Collection[int], to_do: Any) -> str:
    if id(planned) not in unfinished:
        return "done"
    if not planned.steps:
        return planned.status
    return "to do" if any(step.key in to_do for step in planned.steps.values()) else "cached"


def _print_plan(this: "Run", made: "Plan", pending: Sequence[str], uninspected: Sequence[str]) -> None:
    data = plan_as_data(this, made, pending, uninspected)
    lines = [f"{data['suite']}: {len(data['cells'])} cells"]
    for cell in data["cells"]:
        reason = f"  ({cell['reason']})" if cell["reason"] else ""
        lines.append(f"  {cell['state']:10} {cell['cell']}{reason}")
    alone = sum(len(cell["steps"]) + len(cell["background"]) for cell in data["cells"])
    lines.append(f"{len(data['steps'])} steps, where the cells one by one would take {alone}:")
    kinds: dict[str, Counter[str]] = {}
    for step in data["steps"]:
        kinds.setdefault(step["kind"], Counter())[step["state"]] += 1
    for kind, states in kinds.items():
        lines.append(f"  {kind:9} " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    for model in dict.fromkeys(pending):
        lines += [f"pending: {model} has not been loaded yet, so nothing of it is known to be cached"]
    if uninspected:
        lines += [f"not yet known to be possible: what needs {', '.join(uninspected)}"]
    lines.append(f"time: {time_estimate(data['steps'])}")
    click.echo("\n".join(lines))


def time_estimate(steps: Sequence[dict[str, Any]]) -> str:
    """How long the steps of a plan that are to do may take, in words."""
    to_do = [step["seconds"] for step in steps if step["state"] == "to do"]
    known = [seconds for seconds in to_do if seconds is not None]
    if not to_do:
        return "nothing to do"
    unknown = len(to_do) - len(known)
    if not known:
        return f"unknown: no step like these {unknown} has run yet"
    text = f"about {sum(known):.0f} s on one worker for {len(known)} steps"
    return text + (f"; unknown for {unknown} more" if unknown else "")
