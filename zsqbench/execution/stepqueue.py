"""The steps of a run that wait: which of them are ready, in order, and which wait for which."""

import heapq
from collections.abc import Collection, Iterable, Sequence

from zsqbench.steps import Outcome, Step


class Queue:
    """The steps that wait: which of them are ready, in order, and which wait for which."""

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
        """All steps that wait."""
        return list(self._waiting.values())

    def add(self, steps: Iterable[Step], running: Collection[str] = ()) -> None:
        """Add steps, each of which waits for those that it needs or comes after, where they wait or run."""
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
        """The first step that may start now, if any: a background step only where no other is ready.

        `idle` says that nothing runs; an exclusive step waits for that, and background steps wait for it.
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
        """A step that may be done after these in one place: one that waits for these alone, or else one that is ready.

        What the last of them leads to comes first, so that a cell is done before the next is begun.
        """
        there = set(taken)
        for key in reversed(taken):
            for dependent in self._dependents.get(key, ()):
                waits = dependent.key in self._waiting and not dependent.type.exclusive
                if waits and self._unmet[dependent.key] <= there:
                    return self._waiting.pop(dependent.key)
        return self.take(idle=False)  # an exclusive step is not taken thus

    def settle(self, step: Step) -> list[tuple[Step, Outcome]]:
        """Free what waited for this step, or say what it blocks, directly and through others."""
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
