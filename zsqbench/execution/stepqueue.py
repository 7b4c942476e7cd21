"""The waiting steps of a run: the ready steps, in order, and the dependencies of the others."""

import heapq
from collections.abc import Collection, Iterable, Sequence

from zsqbench.steps import Outcome, Step


class Queue:
    """The waiting steps: the ready steps, in order, and the dependencies of the others."""

    def __init__(self, outcomes: dict[str, Outcome]) -> None:
        self._outcomes = outcomes
        self._waiting: dict[str, Step] = {}
        self._unmet: dict[str, set[str]] = {}
        self._dependents: dict[str, list[Step]] = {}
        self._ready: list[tuple[bool, bool, int, str]] = []
        self._order: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def steps(self) -> list[Step]:
        """All waiting steps."""
        return list(self._waiting.values())

    def add(self, steps: Iterable[Step], running: Collection[str] = ()) -> None:
        """Add steps. Each waits for its needed and preceding steps, if these wait or run."""
        added = {step.key: step for step in steps if step.key not in self._waiting}
        self._waiting |= added
        for step in added.values():
            self._order.setdefault(step.key, len(self._order))
            before = (*step.needs, *step.order_only)
            self._unmet[step.key] = {need.key for need in before if need.key in self._waiting or need.key in running}
            for need in self._unmet[step.key]:
                self._dependents.setdefault(need, []).append(step)
            self._make_ready(step)

    def take(self, *, idle: bool) -> Step | None:
        """The first step that may start now, if any. A background step starts only if no other step is ready.

        `idle` is true if no step runs. An exclusive step waits until then, and background steps wait for exclusive
        steps.
        """
        while self._ready:
            _, exclusive, _, key = self._ready[0]
            is_ready = key in self._waiting and not self._unmet[key]
            if is_ready and exclusive and not idle:
                return None
            heapq.heappop(self._ready)
            if is_ready:
                return self._waiting.pop(key)
        return None

    def take_after(self, taken: Sequence[str]) -> Step | None:
        """A step that may be done after these in one place: a step that waits only for these, or else a ready step.

        Dependents of the last step come first, so that a cell is done before the next cell begins.
        """
        there = set(taken)
        for key in reversed(taken):
            for dependent in self._dependents.get(key, ()):
                waits = dependent.key in self._waiting and not dependent.type.exclusive
                if waits and self._unmet[dependent.key] <= there:
                    return self._waiting.pop(dependent.key)
        return self.take(idle=False)  # an exclusive step is never taken in a group

    def settle(self, step: Step) -> list[tuple[Step, Outcome]]:
        """Free the steps that waited for this step. If it failed, return the steps that it blocks, also indirectly."""
        outcome = self._outcomes[step.key]
        blocked = []
        for dependent in self._dependents.pop(step.key, ()):
            if dependent.key not in self._waiting:
                continue
            self._unmet[dependent.key].discard(step.key)
            if outcome.status == "done":
                self._make_ready(dependent)
            else:
                del self._waiting[dependent.key]
                blocked.append((dependent, Outcome("blocked", error=outcome.cause)))
        return blocked

    def _make_ready(self, step: Step) -> None:
        if not self._unmet[step.key]:
            heapq.heappush(self._ready, (step.type.background, step.type.exclusive, self._order[step.key], step.key))
