"""The time that compiling would save in a run. `plan` uses times of this home, or else times measured elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zsqbench.execution.estimates import Estimates
from zsqbench.methods.base import Compiled
from zsqbench.steps.step import Step

SETTINGS = "compile: true, layout: channels_last"
"""The settings for compiling."""


@dataclass(frozen=True)
class Pace:
    """The effect of compiling on a step, on a CPU without units for bfloat16, in float32."""

    contiguous: float
    """How many times as fast as the default the step is."""
    channels_last: float
    """How many times as fast a step is that has this layout already."""
    first: float
    """Seconds to compile it on two cores, for the first time."""
    again: float
    """Seconds to compile it later, with the kernels that the home keeps."""


PACES: Mapping[Compiled, Pace] = {
    "pixels": Pace(1.5, 1.4, 75, 15),
    "updates": Pace(1.6, 1.5, 170, 15),
    "units": Pace(1.35, 1.25, 130, 20),
}
"""Gains of a ResNet-20, see docs/suites.md#settings. Seconds are from the less busy measurement.

The gain of updates in channels_last is a guess, because they were only measured against the default.
"""


@dataclass(frozen=True)
class Saving:
    """The time that compiling would save."""

    seconds: float
    """Seconds that compiling would save. Below 0: it would take longer."""
    of: float
    """Seconds of these steps without compiling."""
    steps: int
    measured: int
    """Number of steps whose method was compiled on their network in this home."""

    def __str__(self) -> str:
        """For people."""
        here = "times of this home"
        elsewhere = "times measured elsewhere, on a CPU without units for bfloat16"
        known = f"by {here}" if self.measured == self.steps else f"by {elsewhere}"
        if 0 < self.measured < self.steps:
            known = f"by {here} ({self.measured}) and {elsewhere}"
        return f"{SETTINGS} would save about {self.seconds:.0f} s of {self.of:.0f} s in {self.steps} steps, {known}"

    def as_data(self) -> dict[str, object]:
        """The saving as plain data."""
        return {"seconds": self.seconds, "of": self.of, "steps": self.steps, "measured": self.measured}


def saving(steps: Iterable[Step], estimates: Estimates, *, on_cpu: bool) -> Saving | None:
    """The saving of compiling all steps that could be compiled and are not. None: there are no such steps, or no times.

    Without times of this home, only times of float32 on a CPU are known. Steps on other devices are not counted.
    """
    saved = total = 0.0
    count = measured = 0
    compiled: set[tuple[str, str, str]] = set()
    for step in steps:
        work, loop = step.work, _loop(step)
        estimate = None if work is None or loop is None else estimates.of(step)
        if work is None or loop is None or estimate is None:
            continue
        seconds = estimates.compiled(work)
        if seconds is None and (not on_cpu or step.cell.settings.precision != "fp32"):
            continue
        if seconds is None:
            pace, what = PACES[loop], (work.kind, work.method, work.network)
            faster = pace.channels_last if step.cell.settings.layout == "channels_last" else pace.contiguous
            seconds = estimate.seconds / faster + (pace.again if what in compiled else pace.first)
            compiled.add(what)
        else:
            measured += 1
        count += 1
        total += estimate.seconds
        saved += estimate.seconds - seconds
    return Saving(saved, total, count, measured) if count else None


def _loop(step: Step) -> Compiled | None:
    """The kind of inner loop of a step that could be compiled and is not."""
    if step.type.axis is None or step.variant is None or step.cell.settings.compile:
        return None
    return step.variant.at_work.method.compiles
