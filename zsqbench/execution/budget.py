"""The cells that fit into a budget of time: which they are, what each adds, and when each would be done."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.steps import Step


@dataclass(frozen=True)
class CellTime:
    """The time that a cell takes."""

    cell: str
    seconds: float | None
    """Of the steps that no earlier cell pays for, one after the other; none where one of them is unknown."""
    unknown: Sequence[str] = ()
    """Labels of the steps of which nothing is known."""
    done: float | None = None
    """Seconds from the start after which it is done, with all that is taken before it."""
    fits: bool | None = None
    """None without a budget, and for a cell that cannot run."""


@dataclass
class Schedule:
    """Steps on workers: each goes to the worker that can begin with it first, in the order in which they come."""

    workers: int
    _free: list[float] = field(init=False)
    """When each worker is free."""
    _ends: dict[str, float] = field(init=False, default_factory=dict)
    """When steps end, by key."""

    def __post_init__(self) -> None:
        self._free = [0.0] * self.workers

    def take(self, steps: Sequence[tuple[Step, float]], limit: float | None) -> float:
        """Take steps with their seconds, each after what it needs; returns when the last one ends.

        Takes none of them where that is after the limit.
        """
        before = list(self._free)
        done = max((self.add(step, seconds) for step, seconds in steps), default=0.0)
        if limit is not None and done > limit:
            self._free = before
            for step, _ in steps:
                del self._ends[step.key]
        return done

    def add(self, step: Step, seconds: float) -> float:
        """Take a step, after what it needs; returns when it ends."""
        ready = max((self._ends.get(need.key, 0.0) for need in (*step.needs, *step.order_only)), default=0.0)
        if step.type.exclusive:
            end = max([ready, *self._free]) + seconds
            self._free = [end] * self.workers
        else:
            # of the workers that are free when it is ready, the one that has waited least
            worker = min(range(self.workers), key=lambda each: (max(self._free[each], ready), -self._free[each]))
            end = self._free[worker] = max(self._free[worker], ready) + seconds
        self._ends[step.key] = end
        return end


def cell_times(
    plan: Plan, seconds: Callable[[Step], float | None], workers: int = 1, budget: float | None = None
) -> list[CellTime]:
    """The time of each cell, in the order of the suite.

    A cell costs the steps that are to do and that no earlier cell has paid for. With a budget, one that would not be
    done in it, or of which a step is unknown, is left out, and later ones may still fit.
    """
    unfinished = [planned for planned in plan.cells if not plan.is_finished(planned)]
    to_do, to_run = plan.to_do(unfinished), {id(planned) for planned in unfinished}
    paid: set[str] = set()
    schedule = Schedule(workers)
    times = []
    for planned in plan.cells:
        if not planned.steps:
            times.append(CellTime(planned.cell.name, 0.0))
            continue
        owed = _unpaid(planned, paid) if id(planned) in to_run else ()
        own = [(step, seconds(step)) for step in owed if step.key in to_do]
        known = [(step, each) for step, each in own if each is not None]
        unknown = [step.label for step, each in own if each is None]
        done = None if unknown and budget is not None else schedule.take(known, budget)
        fits = None if budget is None else done is not None and done <= budget
        if fits is not False:
            paid.update(step.key for step, _ in own)
        total = None if unknown else sum(each for _, each in known)
        times.append(CellTime(planned.cell.name, total, unknown, None if unknown else done, fits))
    return times


def _unpaid(planned: PlannedCell, paid: Collection[str]) -> list[Step]:
    """The steps of a cell that no earlier cell has paid for, each once, after those that it comes after.

    Last those that it does not wait for. Who paid for a step has paid for all that it comes after.
    """
    found: dict[str, Step] = {}

    def add(step: Step) -> None:
        if step.key in paid or step.key in found:
            return
        for need in (*step.needs, *step.order_only):
            add(need)
        found[step.key] = step

    for last in (*planned.steps.values(), *planned.background.values()):
        add(last)
    return list(found.values())
