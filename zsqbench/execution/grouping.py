"""Groups of steps that are done in one place, in sequence: how much work a group should have."""

import time
from collections.abc import Iterable, Sequence

from zsqbench.execution.estimates import Estimates
from zsqbench.execution.timings import Timings
from zsqbench.steps import Step

SHORTEST, LONGEST = 120.0, 600.0
"""Bounds of the seconds of work of a group. Between them, a group has a share of all work."""
UNKNOWN = 20.0
"""Assumed seconds of a step whose time is unknown."""
OLD = 60.0
"""After so many seconds prices are computed again, because steps have ended meanwhile."""


class Prices:
    """Estimated seconds of steps, from the times that are known when this object is made."""

    def __init__(self, timings: Timings, waiting: Iterable[Step], slots: int) -> None:
        self._estimates = Estimates(timings)
        self._made = time.monotonic()
        self.share = min(max(sum(map(self.of, waiting)) / slots, SHORTEST), LONGEST)
        """Seconds of work that a group should have, so that all slots have some."""

    @property
    def old(self) -> bool:
        """True if the prices are outdated."""
        return time.monotonic() - self._made > OLD

    def of(self, step: Step) -> float:
        """Estimated seconds of one step."""
        estimate = self._estimates.of(step)
        return UNKNOWN if estimate is None else estimate.seconds


def places_before(group: Sequence[Step]) -> list[list[int]]:
    """For each step of a group, the indices of the steps in it that must succeed first."""
    places = {step.key: place for place, step in enumerate(group)}
    return [[places[need.key] for need in (*step.needs, *step.order_only) if need.key in places] for step in group]
