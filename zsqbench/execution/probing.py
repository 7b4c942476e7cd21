"""Measure the rates of steps before a suite runs: shortened steps really run, in a temporary folder."""

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import one_line
from zsqbench.execution.estimates import Estimates
from zsqbench.execution.signals import Signals
from zsqbench.execution.timings import Timings
from zsqbench.execution.worker import read_progress, run_step
from zsqbench.hashing import digest_of
from zsqbench.methods import Engine, Method
from zsqbench.methods.work import shortened
from zsqbench.steps import Job, NetworkFacts, Outcome, Resolve, Step, Work
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import work_of
from zsqbench.store import Store

if TYPE_CHECKING:
    from zsqbench.execution.plan import Facts, Plan
    from zsqbench.execution.run import Run
    from zsqbench.execution.session import WorkerConfig
    from zsqbench.suite import Cell

Tell = Callable[[str], None]

LENGTHS = (2, 6, 20, 60, 200, 600)
"""Iterations of shortened methods: first few, then more, until their own time is measurable."""
STANDS_OUT, TIMES = 0.5, 1.3
"""The own time is measurable if a longer probe takes so many seconds, and so many times, more than the first."""
STEP, OPERATION = 0.5, 6e-11
"""Rough seconds of a step, and of one of its operations. They decide the order of probes."""
IMAGES, FEWEST = 64, 8
"""The most and the fewest images of a shortened calibration set, and of a batch."""
HEAVY = 2e11
"""The most operations of a forward pass of a batch. A batch has at least `FEWEST` images."""
SHARE, LEAST = 0.25, 1.0
"""The part of the time for one probe, and the seconds that it always has. Then it is ended, and its time is computed
from its progress."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Probed:
    """The findings of probing, and the plan with the facts of networks that are known now."""

    plan: "Plan"
    seconds: float
    learnt: int
    """Number of methods, each on a network, with a rate that is known now."""
    left: int
    """Number of methods for which there was no time."""
    failed: Mapping[str, str]
    """Why other steps could not be probed, by label."""


@dataclass
class _Group:
    """Steps of one kind and method on one network. One of them is probed."""

    step: Step
    """The step that needs the fewest steps before it."""
    seconds: float = 0.0
    """Rough seconds of all steps."""
    learnt: bool = False


def probe(run: "Run", cells: "Sequence[Cell]", engine: Engine, seconds: float, tell: Tell) -> Probed:
    """Measure unknown rates of steps that are to do, in at most so many seconds, and remember them in the home.

    Networks that no run has loaded yet are loaded first. Their facts are remembered as in a run. Then shortened copies
    of steps run in a temporary folder, with their own data and methods. Only steps that evaluate read evaluation data.
    A KeyboardInterrupt keeps all rates that were measured before.
    """
    started = time.monotonic()
    with (
        Signals().handled(),
        tempfile.TemporaryDirectory(prefix="zsqbench-probe-", ignore_cleanup_errors=True) as scratch,
        contextlib.closing(_Runner(engine, replace(run.config, home=Path(scratch)))) as runner,
    ):
        unloaded = _load_networks(run, cells, runner, tell)
        plan = run.provisional_plan(cells)
        probing = _Probing(run, plan, runner, tell, seconds, started)
        groups = probing.all()
        return Probed(
            plan,
            seconds=time.monotonic() - started,
            learnt=sum(group.learnt for group in groups),
            left=sum(not group.learnt and group.step.label not in probing.failed for group in groups),
            failed={run.resolve[pair].label: outcome.cause for pair, outcome in unloaded.items()} | probing.failed,
        )


def load_networks(run: "Run", cells: "Sequence[Cell]", engine: Engine, tell: Tell) -> "Facts":
    """Load the networks of these cells that no run has loaded yet. Their facts are remembered in the home."""
    with contextlib.closing(_Runner(engine, run.config)) as runner:
        failed = _load_networks(run, cells, runner, tell)
    return {**run.find(cells), **failed}


def _load_networks(
    run: "Run", cells: "Sequence[Cell]", runner: "_Runner", tell: Tell
) -> dict[tuple[str, str], Outcome]:
    """Find the facts of networks, as a run does. Returns the outcomes of failed steps, by task and model."""
    known, failed = run.find(cells), {}
    for pair, step in run.resolve.items():
        if pair in known:
            continue
        tell(f"loading {step.cell.model}")
        outcome = runner.run(run.config, _job(run, step, None), None)
        if outcome.status != "done":
            failed[pair] = outcome
    return failed


class _Probing:
    """One probing of the steps that are to do."""

    def __init__(self, run: "Run", plan: "Plan", runner: "_Runner", tell: Tell, seconds: float, started: float) -> None:
        self.run, self.plan, self.runner, self.tell = run, plan, runner, tell
        self.limit, self.until = SHARE * seconds, started + seconds
        self.failed: dict[str, str] = {}
        """Why steps could not be probed, by label."""
        self._timings = Timings(run.store)
        found = {pair: Resolve.facts(run.store, step.key) for pair, step in run.resolve.items()}
        self._facts = {pair: facts for pair, facts in found.items() if facts is not None}
        self._made: dict[str, str] = {}
        """Keys of the shortest copies, by the keys of their steps."""
        self._before: set[str] = set()
        """Keys of steps that come before others."""
        self._took: dict[str, Outcome] = {}
        """The outcomes of shortest copies, by their own keys. A step may be needed before it is probed."""

    def all(self) -> list[_Group]:
        """Probe one group after the other, the most informative for their time first, until the time is over."""
        groups = self._groups()
        for number, group in enumerate(groups, 1):
            if time.monotonic() < self.until or group.step.key in self._made:  # the copy was needed before
                self.tell(f"probing {number} of {len(groups)}: {group.step.label}")
                self._probe(group)
        return groups

    def _groups(self) -> list[_Group]:
        """One group for each kind, method and network with unknown rates.

        First comes one group of each kind that most cells have, because without it their time stays unknown. Then come
        the groups with the most information for their time.
        """
        unfinished = [planned for planned in self.plan.cells if not self.plan.is_finished(planned)]
        estimates = Estimates(self._timings)
        groups: dict[tuple[str, str, str, bool], _Group] = {}
        for step in self.plan.to_do(unfinished).values():
            if step.work is None or estimates.knows(step):
                continue
            work = step.work
            group = groups.setdefault((work.kind, work.method, work.network, work.compiled), _Group(step))
            group.seconds += _guess(work)
            group.step = min(group.step, step, key=_cost)
        ordered = sorted(groups.values(), key=lambda group: -group.seconds / self._effort(group.step))
        kinds = Counter(kind for planned in unfinished for kind in (*planned.steps, *planned.background))
        first = {group.step.kind: group for group in reversed(ordered) if 2 * kinds[group.step.kind] > len(unfinished)}
        return sorted(ordered, key=lambda group: first.get(group.step.kind) is not group)

    def _effort(self, step: Step) -> float:
        """Rough seconds of its probes."""
        lengths = LENGTHS[: 1 if self._shortened(step, LENGTHS[0]) == self._shortened(step, LENGTHS[-1]) else 2]
        return sum(_guess(work) for length in lengths if (work := self._work(step, length)) is not None)

    def _network(self, step: Step) -> NetworkFacts:
        return self._facts[step.cell.task, step.cell.model]

    def _operations(self, step: Step) -> int:
        return self._network(step).operations or 1

    def _probe(self, group: _Group) -> None:
        """Run it at growing lengths, until its own time is measurable or it cannot grow further.

        Either all times are remembered or none. The first alone would count fixed costs as costs of images.
        """
        found: list[tuple[Work, float]] = []
        longest = self._shortened(group.step, LENGTHS[-1])
        for length in LENGTHS:
            if found and time.monotonic() + found[-1][1] * TIMES >= self.until:
                break
            outcome, work = self._make(group.step, length), self._work(group.step, length)
            if outcome.status == "failed" or work is None or not outcome.seconds:
                break
            found.append((work, outcome.seconds))
            whole = self._shortened(group.step, length) == longest
            first = found[0][1]
            if whole or outcome.status != "done" or outcome.seconds >= max(first + STANDS_OUT, TIMES * first):
                group.learnt = whole or len(found) > 1
                break
        group.learnt = group.learnt or len(found) > 1
        for work, seconds in found if group.learnt else ():
            self._timings.add_probe(work, seconds)

    def _make(self, step: Step, length: int) -> Outcome:
        """Run a shortened copy of a step, after the steps that it needs.

        An interrupted outcome has the seconds that the copy would have taken. 0: not known.
        """
        if length == LENGTHS[0] and step.key in self._made:
            return self._took[self._made[step.key]]
        for need in step.order_only:
            if need.key not in self._before:  # also in a run this step needs the data first
                self._before.add(need.key)
                self._make(need, LENGTHS[0])
        for need in step.needs:
            made = Outcome("done") if need.key in self._made else self._make(need, LENGTHS[0])
            if made.status != "done":
                return self._fail(step, f"it needs {need.label}, which could not be made: {made.cause}")
        resolve = self.run.resolve[step.cell.task, step.cell.model]
        method, key = self._shortened(step, length), digest_of([step.key, length])
        job = _job(self.run, step, self._network(step).digest)
        if method is not None:
            job = job.calling(method.options())
        needs = {need.kind: self._made[need.key] for need in step.needs}
        self.runner.warm(_job(self.run, resolve, None))
        limit = min(self.limit, max(self.until - time.monotonic(), LEAST))
        outcome = self.runner.run(self.runner.scratch, job.model_copy(update={"key": key, "needs": needs}), limit)
        if outcome.status == "failed":
            return self._fail(step, outcome.cause)
        if outcome.status == "done" and length == LENGTHS[0]:
            self._made[step.key] = key
            self._took[key] = outcome
        return outcome

    def _fail(self, step: Step, why: str) -> Outcome:
        self.failed.setdefault(step.label, why)
        return Outcome("failed", error=why)

    def _shortened(self, step: Step, length: int) -> Method | None:
        """The shortened method of a step. None: the step runs unchanged."""
        if step.type.axis is None or step.variant is None:
            return None
        images = max(FEWEST, min(IMAGES, int(HEAVY / self._operations(step))))
        return shortened(step.variant.at_work.method, length, images)

    def _work(self, step: Step, length: int) -> Work | None:
        """The work of the shortened copy."""
        if step.work is None:
            return None
        made, method = next((need for need in step.needs if need.type is Generate), None), self._shortened(step, length)
        images = getattr(method if made is None else self._shortened(made, LENGTHS[0]), "images", 0) or 0
        if method is not None:
            passes = work_of(method, images)
        elif made is not None:  # it only reads the set
            passes = min(images, step.work.images)
        else:
            return step.work
        return replace(step.work, images=passes)


def _job(run: "Run", step: Step, network: str | None) -> Job:
    """The job of a step, made as in the run loop."""
    resolve = run.resolve[step.cell.task, step.cell.model].key
    return step.type.of(step, run.suite, run.data.get(step.cell.task), resolve, network)


def _cost(step: Step) -> float:
    """Rough seconds of a step, with all steps that it needs."""
    return (_guess(step.work) if step.work else 0.0) + sum(map(_cost, step.needs))


def _guess(work: Work) -> float:
    """Rough seconds of a step, before anything is known."""
    return STEP + OPERATION * work.images * work.cost


class _Runner:
    """Runs jobs in sequence in a worker, each with a time limit."""

    def __init__(self, engine: Engine, scratch: "WorkerConfig") -> None:
        self.engine, self.scratch = engine, scratch
        self._executor: Executor | None = None
        self._warm: set[str] = set()

    def warm(self, resolve: Job) -> None:
        """Load a network in the worker before anything is timed, as in a run."""
        if resolve.key not in self._warm:
            self.run(self.scratch, resolve, None)
            self._warm.add(resolve.key)

    def run(self, config: "WorkerConfig", job: Job, limit: float | None) -> Outcome:
        """Run a job, and interrupt it after so many seconds. Its seconds are then estimated. 0: they are not known."""
        if self._executor is None:
            self._executor = self.engine.start()
        began = time.monotonic()
        try:
            future: Future[Outcome] = self._executor.submit(run_step, config, job)
            while not wait([future], POLL_SECONDS).done:
                if limit is not None and time.monotonic() - began > limit:
                    return Outcome("interrupted", self._extrapolated(config, job, time.monotonic() - began))
            return future.result()
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way, and a worker die
            self.close()
            return Outcome("failed", error=one_line(error))

    def _extrapolated(self, config: "WorkerConfig", job: Job, seconds: float) -> float:
        progress = read_progress(Store(config.home), job.key)
        self.close()
        return seconds * progress.total / progress.done if progress and progress.done else 0.0

    def close(self) -> None:
        """End the worker, even during a job."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self._warm.clear()
