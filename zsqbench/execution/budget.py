"""The cells that fit into a time budget, the time that each adds, and when each would be done."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.steps import Step


@dataclass(frozen=True)
class CellTime:
    """The time that a cell takes."""

    cell: str
    seconds: float | None
    """Seconds of the steps that no earlier cell pays for, in sequence. None: the time of a step is unknown."""
    unknown: Sequence[str] = ()
    """Labels of the steps whose time is unknown."""
    done: float | None = None
    """Seconds from the start until it is done, with all cells that are taken before it."""
    fits: bool | None = None
    """None: there is no budget, or the cell cannot run."""


@dataclass
class Schedule:
    """Steps on workers. Each step, in the given order, goes to the worker that can begin it first."""

    workers: int
    _free: list[float] = field(init=False)
    """When each worker is free."""
    _ends: dict[str, float] = field(init=False, default_factory=dict)
    """When steps end, by key."""

    def __post_init__(self) -> None:
        self._free = [0.0] * self.workers

    def take(self, steps: Sequence[tuple[Step, float]], limit: float | None) -> float:
        """Take steps with their seconds, each after the steps that it needs. Returns when the last step ends.

        If this is after the limit, no step is taken.
        """
        before = list(self._free)
        done = max((self.add(step, seconds) for step, seconds in steps), default=0.0)
        if limit is not None and done > limit:
            self._free = before
            for step, _ in steps:
                del self._ends[step.key]
        return done

    def add(self, step: Step, seconds: float) -> float:
        """Take a step, after the steps that it needs. Returns when it ends."""
        ready = max((self._ends.get(need.key, 0.0) for need in (*step.needs, *step.order_only)), default=0.0)
        if step.type.exclusive:
            end = max([ready, *self._free]) + seconds
            self._free = [end] * self.workers
        else:
            # of the workers that are free when the step is ready, take the worker that has waited least
            worker = min(range(self.workers), key=lambda each: (max(self._free[each], ready), -self._free[each]))
            end = self._free[worker] = max(self._free[worker], ready) + seconds
        self._ends[step.key] = end
        return end


def cell_times(
    plan: Plan, seconds: Callable[[Step], float | None], workers: int = 1, budget: float | None = None
) -> list[CellTime]:
    """The time of each cell, in the order of the suite.

    A cell costs the steps that are to do and that no earlier cell has paid for. With a budget, a cell is left out if it
    would not be done in time, or if the time of a step is unknown. Later cells may still fit.
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
    """The steps of a cell that no earlier cell has paid for. Each is listed once, after the steps before it.

    Steps that the cell does not wait for come last. A cell that paid for a step has also paid for the steps before it.
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
