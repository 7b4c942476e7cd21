"""Probe how long steps take before a suite runs: shortened steps run for real, somewhere else, and tell rates."""

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
"""Steps that shortened methods make, of each kind of step: first few, then more, until what they take stands out."""
STANDS_OUT, TIMES = 0.5, 1.3
"""Seconds that a longer probe takes more than the first, and how many times as long, when its own time stands out."""
STEP, OPERATION = 0.5, 6e-11
"""Seconds of a step, and of an operation of it, roughly: they decide in which order steps are probed."""
IMAGES, FEWEST = 64, 8
"""Images of a shortened calibration set, and of a batch, at most."""
HEAVY = 2e11
"""Operations of a forward pass of a batch, at most, as long as it has 8 images."""
SHARE, LEAST = 0.25, 1.0
"""The part of the time that one probe may take, and seconds that it has in any case; then it is ended, and its progress
tells what it would have taken."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Probed:
    """The findings of probing, and the plan with what is known of networks now."""

    plan: "Plan"
    seconds: float
    learnt: int
    """Methods of a kind, each on a network, of which a rate is known now."""
    left: int
    """Those that there was no time for."""
    failed: Mapping[str, str]
    """Why others could not be probed, by label."""


@dataclass
class _Group:
    """Steps of one kind and method on one network, of which one is probed."""

    step: Step
    """The one that needs least before it."""
    seconds: float = 0.0
    """Of all of them, as far as can be guessed."""
    learnt: bool = False


def probe(run: "Run", cells: "Sequence[Cell]", engine: Engine, seconds: float, tell: Tell) -> Probed:
    """Learn rates of what is to do and not known, in so many seconds at most, and remember them in the home.

    Networks that no run has loaded yet are loaded first, and what is learnt of them is remembered as by a run. All
    else happens in a folder that is gone afterwards: shortened copies of the steps, with their own data and methods;
    evaluation data is read by steps that evaluate alone. A KeyboardInterrupt leaves all that was learnt before it.
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
    """Load the networks of these cells that no run has loaded yet; what is learnt of them is remembered in the home."""
    with contextlib.closing(_Runner(engine, run.config)) as runner:
        failed = _load_networks(run, cells, runner, tell)
    return {**run.find(cells), **failed}


def _load_networks(
    run: "Run", cells: "Sequence[Cell]", runner: "_Runner", tell: Tell
) -> dict[tuple[str, str], Outcome]:
    """Learn what networks are, as a run does; returns how those ended, by task and model, that could not be loaded."""
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
    """One probing of what is to do."""

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
        """Keys of steps that others come after."""
        self._took: dict[str, Outcome] = {}
        """The outcomes of these, by their own keys: a step may be needed before it is probed."""

    def all(self) -> list[_Group]:
        """Probe one group after the other, those that tell most for their time first, until that is over."""
        groups = self._groups()
        for number, group in enumerate(groups, 1):
            if time.monotonic() < self.until or group.step.key in self._made:  # others needed it
                self.tell(f"probing {number} of {len(groups)}: {group.step.label}")
                self._probe(group)
        return groups

    def _groups(self) -> list[_Group]:
        """One for each kind, method and network of which nothing is known.

        First one of each kind that most cells have, for without it nothing is known of these; then those that tell most
        for their time.
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
        """About how many seconds its probes take."""
        lengths = LENGTHS[: 1 if self._shortened(step, LENGTHS[0]) == self._shortened(step, LENGTHS[-1]) else 2]
        return sum(_guess(work) for length in lengths if (work := self._work(step, length)) is not None)

    def _network(self, step: Step) -> NetworkFacts:
        return self._facts[step.cell.task, step.cell.model]

    def _operations(self, step: Step) -> int:
        return self._network(step).operations or 1

    def _probe(self, group: _Group) -> None:
        """Run it at growing lengths, until its own time stands out or nothing is left to lengthen.

        All of them are remembered or none: the first alone would tell fixed costs as if they grew.
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
        """Run a shortened copy of a step, after what it needs.

        An outcome that is interrupted has the seconds that it would have taken, or none where that is not known.
        """
        if length == LENGTHS[0] and step.key in self._made:
            return self._took[self._made[step.key]]
        for need in step.order_only:
            if need.key not in self._before:  # in a run, too, it is first to need the data
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
        """The method of a step, shortened; none for steps that run as they are."""
        if step.type.axis is None or step.variant is None:
            return None
        images = max(FEWEST, min(IMAGES, int(HEAVY / self._operations(step))))
        return shortened(step.variant.at_work.method, length, images)

    def _work(self, step: Step, length: int) -> Work | None:
        """How much the shortened copy has to do."""
        if step.work is None:
            return None
        made, method = next((need for need in step.needs if need.type is Generate), None), self._shortened(step, length)
        images = getattr(method if made is None else self._shortened(made, LENGTHS[0]), "images", 0) or 0
        if method is not None:
            passes = work_of(method, images)
        elif made is not None:  # it looks at the set alone
            passes = min(images, step.work.images)
        else:
            return step.work
        return replace(step.work, images=passes)


def _job(run: "Run", step: Step, network: str | None) -> Job:
    """The job of a step, as the run loop makes it."""
    resolve = run.resolve[step.cell.task, step.cell.model].key
    return step.type.of(step, run.suite, run.data.get(step.cell.task), resolve, network)


def _cost(step: Step) -> float:
    """About how many seconds a step takes, with all that it needs."""
    return (_guess(step.work) if step.work else 0.0) + sum(map(_cost, step.needs))


def _guess(work: Work) -> float:
    """About how many seconds it takes, before anything is known."""
    return STEP + OPERATION * work.images * work.cost


class _Runner:
    """Runs jobs one after the other in a worker, each for a while at most."""

    def __init__(self, engine: Engine, scratch: "WorkerConfig") -> None:
        self.engine, self.scratch = engine, scratch
        self._executor: Executor | None = None
        self._warm: set[str] = set()

    def warm(self, resolve: Job) -> None:
        """Load a network in the worker before anything is timed there, as a run has."""
        if resolve.key not in self._warm:
            self.run(self.scratch, resolve, None)
            self._warm.add(resolve.key)

    def run(self, config: "WorkerConfig", job: Job, limit: float | None) -> Outcome:
        """Run a job; after so many seconds it is interrupted, and its seconds are what it would have taken, or 0."""
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
        """End the worker, in the middle of what it does."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self._warm.clear()
