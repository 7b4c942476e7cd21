"""Steps that are done in one place, one after the other: how much work a group of them should have."""

import time
from collections.abc import Iterable, Sequence

from zsqbench.execution.estimates import Estimates
from zsqbench.execution.timings import Timings
from zsqbench.steps import Step

SHORTEST, LONGEST = 120.0, 600.0
"""Seconds of work of a group: a share of all that there is, but within these."""
UNKNOWN = 20.0
"""Seconds that a step is taken to last of which nothing is known."""
OLD = 60.0
"""Seconds after which prices are asked for anew, for steps have ended meanwhile."""


class Prices:
    """Seconds that steps may take, by what is remembered when this is made."""

    def __init__(self, timings: Timings, waiting: Iterable[Step], slots: int) -> None:
        self._estimates = Estimates(timings)
        self._made = time.monotonic()
        self.share = min(max(sum(map(self.of, waiting)) / slots, SHORTEST), LONGEST)
        """Seconds of work that a group should have, so that all slots have some."""

    @property
    def old(self) -> bool:
        """True if they are to be asked for anew."""
        return time.monotonic() - self._made > OLD

    def of(self, step: Step) -> float:
        """Of one step."""
        estimate = self._estimates.of(step)
        return UNKNOWN if estimate is None else estimate.seconds


def places_before(group: Sequence[Step]) -> list[list[int]]:
    """For each step of a group, the places of those in it that have to end well first."""
    places = {step.key: place for place, step in enumerate(group)}
    return [[places[need.key] for need in (*step.needs, *step.order_only) if need.key in places] for step in group]
