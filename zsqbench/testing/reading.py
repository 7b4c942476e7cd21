"""The check of how many images a quantizer says that it read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.methods import CalibrationSet, TaskContext
from zsqbench.testing.context import PatientReporter, context
from zsqbench.testing.report import Report

READ = "it reads as many images as it says: others behind them change nothing, another last one of them does"

SEEDS = 8
"""How many are tried until another image changes something, where images are drawn at random."""

Quantize = Callable[[CalibrationSet, TaskContext], torch.nn.Module]
"""Quantizes a network that is always the same."""


@dataclass(frozen=True)
class _Reading:
    """The end that a set of images came to."""

    state: dict[str, Tensor]
    curves: dict[str, list[tuple[int, float]]]
    read: int

    def same_network(self, other: "_Reading") -> bool:
        return self.state.keys() == other.state.keys() and all(
            torch.equal(value, other.state[name]) for name, value in self.state.items()
        )


def check_reading(report: Report, quantize: Quantize, data: CalibrationSet, where: str) -> None:
    """Replace images of a set of real-valued noise, and compare what comes of it.

    All images behind the number that is said to be read: the network must stay as it is, bit for bit. The last one
    before it, by a louder one: the network or a curve must change, with one of a few seeds.
    """
    try:
        before = _read(quantize, data, 0)
        said = f"said that it read {before.read} of {len(data)} images"
        if not report.require(READ, before.read <= len(data), said, where):
            return
        if before.read < len(data):
            same = before.same_network(_read(quantize, _replaced(data, slice(before.read, None)), 0))
            report.require(READ, same, f"{said}, and others in place of the rest changed the network", where)
        if before.read:
            louder, seeds = _replaced(data, slice(before.read - 1, before.read)), range(SEEDS)
            changes = any(
                _differ(_read(quantize, data, seed) if seed else before, _read(quantize, louder, seed))
                for seed in (seeds if report.method.seeded else seeds[:1])
            )
            report.require(
                READ, changes, f"{said}, and another one in place of the last of these changed nothing", where
            )
    except (ValidationError, ZSQBenchError) as error:
        report.skip(READ, f"it does not take {len(data)} images: {one_line(error)}")
    except Exception as error:  # noqa: BLE001 - a method may raise anything
        report.blame(READ, error, f" with {len(data)} images{where}")


def _read(quantize: Quantize, data: CalibrationSet, seed: int) -> _Reading:
    ctx, reporter = context(seed), PatientReporter()
    ctx.reporter = reporter
    student = quantize(data, ctx)
    return _Reading(student.state_dict(), reporter.curves, len(data) if ctx.read is None else ctx.read)


def _replaced(data: CalibrationSet, part: slice) -> CalibrationSet:
    """The set with other images in one part, three times as loud, so that ranges from end to end change, too."""
    images = data.images.clone()
    noise = torch.Generator().manual_seed(1)
    images[part] = 3 * torch.randn(images[part].shape, generator=noise)
    return CalibrationSet(images, data.labels, boxes=data.boxes)


def _differ(first: _Reading, second: _Reading) -> bool:
    return not first.same_network(second) or first.curves != second.curves
