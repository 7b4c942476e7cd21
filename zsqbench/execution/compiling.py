"""What compiling would save in a run: `plan` says it by times of this home, or else by what was measured elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zsqbench.execution.estimates import Estimates
from zsqbench.methods.base import Compiled
from zsqbench.steps.step import Step

SETTINGS = "compile: true, layout: channels_last"
"""The settings that are meant."""


@dataclass(frozen=True)
class Pace:
    """How a step goes on where it is compiled, on a CPU without units for bfloat16, in float32."""

    contiguous: float
    """How many times as fast as the default."""
    channels_last: float
    """The same for a step that has this layout already."""
    first: float
    """Seconds to compile it on two cores, for the first time."""
    again: float
    """Seconds of each later time, with the kernels that the home keeps."""


PACES: Mapping[Compiled, Pace] = {
    "pixels": Pace(1.5, 1.4, 75, 15),
    "updates": Pace(1.6, 1.5, 170, 15),
    "units": Pace(1.35, 1.25, 130, 20),
}
"""Of a ResNet-20, see docs/suites.md#settings; seconds are those of the less busy measurement.

That of updates in channels_last is a guess: they were measured against the default alone.
"""


@dataclass(frozen=True)
class Saving:
    """The time that compiling would save."""

    seconds: float
    """Less than none where it would take longer."""
    of: float
    """What these steps take as they are."""
    steps: int
    measured: int
    """Steps whose method was compiled on their network in this home."""

    def __str__(self) -> str:
        """For people."""
        here = "times of this home"
        elsewhere = "what was measured elsewhere, on a CPU without units for bfloat16"
        known = f"by {here}" if self.measured == self.steps else f"by {elsewhere}"
        if 0 < self.measured < self.steps:
            known = f"by {here} ({self.measured}) and {elsewhere}"
        return f"{SETTINGS} would save about {self.seconds:.0f} s of {self.of:.0f} s in {self.steps} steps, {known}"

    def as_data(self) -> dict[str, object]:
        """The same as plain data."""
        return {"seconds": self.seconds, "of": self.of, "steps": self.steps, "measured": self.measured}


def saving(steps: Iterable[Step], estimates: Estimates, *, on_cpu: bool) -> Saving | None:
    """What compiling the steps that could be and are not would save; none where there are none, or nothing is known.

    Without times of this home, only float32 on a CPU is known: what is computed elsewhere is not counted.
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
    """The loop of a step that could be compiled, and is not."""
    if step.type.axis is None or step.variant is None or step.cell.settings.compile:
        return None
    return step.variant.at_work.method.compiles
