"""The cells that fit into a budget of time: which they are, what each adds, and when each would be done."""

from collections.abc import Callable, Iterator, Sequence
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
    _ends: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._free = [0.0] * self.workers

    def copy(self) -> "Schedule":
        """One that goes on from here, and leaves this one as it is."""
        other = Schedule(self.workers)
        other._free, other._ends = list(self._free), dict(self._ends)
        return other

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
    to_do, left_out = plan.to_do(unfinished), {id(planned) for planned in unfinished}
    paid: set[str] = set()
    schedule = Schedule(workers)
    times = []
    for planned in plan.cells:
        if not planned.steps:
            times.append(CellTime(planned.cell.name, 0.0))
            continue
        own = [step for step in _steps(planned) if step.key in to_do and step.key not in paid]
        own = own if id(planned) in left_out else []
        known = [(step, each) for step in own if (each := seconds(step)) is not None]
        unknown = [step.label for step in own if seconds(step) is None]
        trial = schedule.copy() if budget is not None else schedule
        done = max((trial.add(step, each) for step, each in known), default=0.0)
        fits = None if budget is None else not unknown and done <= budget
        if fits is not False:
            paid.update(step.key for step in own)
            schedule = trial
        total = None if unknown else sum(each for _, each in known)
        times.append(CellTime(planned.cell.name, total, unknown, None if unknown else done, fits))
    return times


def _steps(planned: PlannedCell) -> Iterator[Step]:
    """All steps of a cell, each once, after those that it comes after; last those that it does not wait for."""
    seen: set[str] = set()

    def walk(step: Step) -> Iterator[Step]:
        if step.key in seen:
            return
        seen.add(step.key)
        for need in (*step.needs, *step.order_only):
            yield from walk(need)
        yield step

    for last in (*planned.steps.values(), *planned.background.values()):
        yield from walk(last)
