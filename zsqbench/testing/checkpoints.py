"""The check of going on from a checkpoint, which goes through the files of a run."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from zsqbench.errors import one_line
from zsqbench.execution.reporter import Reporter
from zsqbench.testing.context import PatientReporter
from zsqbench.testing.report import Report

RESUMED = 3
"""How many of the checkpoints are resumed from, about."""


def check_checkpoints(
    report: Report,
    check: str,
    offered: PatientReporter,
    resume: Callable[[Mapping[str, Any]], bool],
    where: str,
) -> None:
    """Some of the states that a call offered must come to the same end, as a file of a run gives them back.

    `resume` goes on from a state, and says if that gave the same as the call.
    """
    if offered.refusal is not None:
        report.require(check, False, f"offered a state that ends a run: {offered.refusal}", where)
    elif not offered.states:
        report.skip(check, "it offers none; a method that takes seconds needs none")
    for state in offered.states[:: max(1, len(offered.states) // RESUMED)]:
        try:
            kept = through_file(state)
        except Exception as error:  # noqa: BLE001 - safetensors has errors of many types
            report.require(check, False, f"offered a state that no file holds: {one_line(error)}", where)
            return
        report.require(check, resume(kept), "gave something else when resumed from a checkpoint", where)


def through_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of `MemoryReporter`, with its random numbers, as a run that goes on finds it in its folder."""
    rng = torch.Generator()
    rng.set_state(state["rng"])
    with tempfile.TemporaryDirectory(prefix="zsqbench-checkpoint-") as folder:
        Reporter(Path(folder), rng).keep({name: value for name, value in state.items() if name != "rng"})
        reporter = Reporter(Path(folder), torch.Generator())
        found = reporter.resume()
    assert found is not None, reporter.notes  # noqa: S101 - it was written just now
    return found | {"rng": reporter.rng.get_state()}
