"""The run loop: ready steps go to free slots."""

import contextlib
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zsqbench.errors import CorruptArtifactError, ZSQBenchError, one_line
from zsqbench.execution.grouping import Prices, places_before
from zsqbench.execution.noderecord import Ended, NodeRecord
from zsqbench.execution.stepqueue import Queue
from zsqbench.execution.timings import Timings
from zsqbench.execution.worker import read_progress, run_step
from zsqbench.leases import Leases
from zsqbench.methods import Engine
from zsqbench.methods.engine import GroupExecutor, NodeLostError, NodeUnfitError, NotBegunError
from zsqbench.steps import Job, NetworkFacts, Outcome, Progress, Step

if TYPE_CHECKING:
    from zsqbench.execution.plan import Facts
    from zsqbench.execution.run import Run

log = logging.getLogger("zsqbench")

POLL_SECONDS = 0.2
ATTEMPTS = 2
"""A step whose worker died is tried once more, because another process may have filled the memory."""
LOSSES = 5
"""A step is tried until so many nodes are lost. Then the step itself may end the nodes."""
UNFIT = 3
"""If so many nodes are unfit before any node has done a step, all nodes have a problem."""


@dataclass(frozen=True)
class _News:
    """The last report of a running step."""

    progress: Progress
    since: float
    silent: int = 0
    """Minutes since the last report, as last shown."""


class Loop:
    """Keeps ready steps and free slots. Each free slot gets one submission.

    If another run on this home does a step, the loop waits for it and uses its artifact.
    """

    def __init__(self, run: "Run", engine: Engine, leases: Leases) -> None:
        self.run_ = run
        self.engine = engine
        self.leases = leases
        self.timings = Timings(run.store)
        self.facts: Facts = {}
        self.outcomes: dict[str, Outcome] = {}
        self.signal: int | None = None
        """The signal that interrupted it, if any."""
        self._queue = Queue(self.outcomes)
        self._running: dict[Future[Outcome], Step] = {}
        self._group: dict[Future[Outcome], int] = {}
        """The number of the group of each submitted step. A group has one step, unless the executor takes more."""
        self._groups = 0
        self._elsewhere: dict[str, Step] = {}
        """Steps that other runs do."""
        self._checked = False
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._nodes = NodeRecord()
        self._unfit: dict[str, str] = {}
        """Why nodes cannot run steps, by node."""
        self._prices: Prices | None = None
        self._made_again: set[str] = set()
        self._settled: list[Step] = []
        self._all_settled: list[Step] = []
        self._executor: Executor | None = None
        self._news: dict[str, _News] = {}
        """The last report of each running step."""

    def run(self, steps: Iterable[Step], after: Callable[[list[Step]], None] = lambda _: None) -> None:
        """Run steps, each after the steps that it needs. Call `after` with steps whenever some are settled.

        Ctrl-C, or another signal to end, ends the loop. Steps that are not settled are then interrupted. Raises
        ZSQBenchError if the engine says that no step can run.
        """
        try:
            self._queue.add(steps)
            self._check_engine()
            while self._queue or self._running or self._elsewhere or self._nodes.holds:
                if self._nodes.holds and not (self._running or self._elsewhere):
                    self._settle_all(self._nodes.give_up())
                self._look_elsewhere()
                self._fill_slots()
                done = self._wait()
                for future in [each for each in self._running if each in done]:  # in order
                    del self._group[future]
                    self._finish(self._running.pop(future), future)
                self._fill_slots()  # before rows are written, so that no slot waits for the writing
                if not done:
                    self._show_progress()
                after(self._take_settled())
        except KeyboardInterrupt as interruption:
            self.interrupt(interruption)

    @property
    def interrupted(self) -> bool:
        """True if a signal ended it."""
        return self.signal is not None

    def interrupt(self, interruption: KeyboardInterrupt) -> None:
        """Stop at once."""
        self.signal = getattr(interruption, "number", signal.SIGINT)
        for step in [*self._running.values(), *self._elsewhere.values(), *self._queue.steps()]:
            self.outcomes[step.key] = Outcome("interrupted", error="the run was interrupted")
            self.leases.release(step.key)
        self.close(kill=True)

    def close(self, *, kill: bool = False) -> None:
        """End the workers. End them at once if asked, or if an error ends the run while steps are running."""
        if self._executor is not None:
            kill = kill or bool(self._running)
            self._executor.shutdown(wait=not kill, cancel_futures=kill)
            self._executor = None

    def background_failures(self) -> dict[str, str]:
        """Why background steps failed, by their label."""
        failed = [step for step in self._all_settled if step.type.background]
        outcomes = {step.label: self.outcomes[step.key] for step in failed}
        return {label: outcome.cause for label, outcome in outcomes.items() if outcome.status == "failed"}

    def _check_engine(self) -> None:
        """Let the engine check its nodes once, if there is a step to do."""
        if self._queue and not self._checked:
            self.engine.check(self.run_.config)
            self._checked = True

    def _take_settled(self) -> list[Step]:
        settled, self._settled = self._settled, []
        return settled

    def _wait(self) -> set["Future[Outcome]"]:
        """The steps that ended within a short time."""
        if not self._running:
            time.sleep(POLL_SECONDS if self._elsewhere else 0)
            return set()
        return wait(self._running, POLL_SECONDS, FIRST_COMPLETED).done

    def _look_elsewhere(self) -> None:
        """Use the results of other runs, and do steps that they have given up."""
        for step in list(self._elsewhere.values()):
            if self._is_done_elsewhere(step):
                self._settle(self._elsewhere.pop(step.key), Outcome("done"))
            elif self.leases.claim(step.key):
                self.leases.release(step.key)  # it is taken again with its slot
                self._queue.add([self._elsewhere.pop(step.key)], self._unfinished)

    def _is_done_elsewhere(self, step: Step) -> bool:
        if not self.run_.store.has(step.kind, step.key):
            return False
        try:
            self.run_.store.manifest(step.kind, step.key)
        except CorruptArtifactError:
            self.run_.store.discard(step.key)
            return False
        return True

    def _fill_slots(self) -> None:
        while self._queue and len(set(self._group.values())) < self.engine.slots():
            if any(step.type.exclusive for step in self._running.values()):
                return
            step = self._queue.take(idle=not self._running)
            if step is None:
                return
            if self._is_ours(step):
                self._submit(step)

    def _is_ours(self, step: Step) -> bool:
        """True if this run does a step: no other run does it, or has done it since this run was planned."""
        if not self.leases.claim(step.key):
            self._elsewhere[step.key] = step
            self.run_.notify("step_progress", step=step, progress=Progress(note="another run does it"))
            return False
        if self._is_done_elsewhere(step):
            self._settle(step, Outcome("done"))
            return False
        return True

    def _submit(self, step: Step) -> None:
        """Submit a step to the executor, with other steps if it takes several at a time."""
        group = [step]
        try:
            if self._executor is None:
                self._executor = self.engine.start()
            if isinstance(self._executor, GroupExecutor):
                group = self._grouped(step)
                jobs = list(map(self._job, group))
                futures = self._executor.submit_group(run_step, self.run_.config, jobs, places_before(group))
            else:
                futures = [self._executor.submit(run_step, self.run_.config, self._job(step))]
        except KeyboardInterrupt:  # an engine may run steps inside `submit`
            self._queue.add(group)
            raise
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way; these steps fail
            self.close(kill=True)
            for each in group:
                self._settle(each, Outcome("failed", error=f"the engine did not take it: {one_line(error)}"))
        else:
            self._running |= zip(futures, group, strict=True)
            self._groups += 1
            self._group |= dict.fromkeys(futures, self._groups)

    def _grouped(self, step: Step) -> list[Step]:
        """A step with others that are done after it in one place, its dependents first: a share of the work."""
        prices = self._prices
        if prices is None or prices.old:
            prices = Prices(Timings(self.run_.store), [step, *self._queue.steps()], self.engine.slots())
            self._prices = prices
        group, seconds = [step], prices.of(step)
        while seconds < prices.share and not step.type.exclusive:
            following = self._queue.take_after([step.key for step in group])
            if following is None:
                break
            if self._is_ours(following):
                group.append(following)
                seconds += prices.of(following)
        return group

    def _job(self, step: Step) -> Job:
        """A step as plain data for a worker."""
        facts = self.facts.get((step.cell.task, step.cell.model))
        resolve = self.run_.resolve[step.cell.task, step.cell.model].key
        network = facts.digest if isinstance(facts, NetworkFacts) else None
        return step.type.of(step, self.run_.suite, self.run_.data.get(step.cell.task), resolve, network)

    def _finish(self, step: Step, future: "Future[Outcome]") -> None:
        node = getattr(future, "node", None)
        try:
            outcome = future.result()
        except NotBegunError:
            self._put_back(step)
            return
        except NodeUnfitError as error:
            self._leave_out(node or "without a name", str(error))
            self._put_back(step)
            return
        except BrokenExecutor as error:
            outcome = Outcome("failed", error=_death(error, step))
            self._restart_if_broken()
            if self._try_elsewhere(step, error) if isinstance(error, NodeLostError) else self._try_again(step):
                return
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way; this step fails
            outcome = Outcome("failed", error=one_line(error))
        if outcome.damaged is not None and self._make_again(step, outcome.damaged):
            return
        if outcome.status == "done" and step.timing_key:
            self.timings.add(step, outcome.seconds)
        self._settle_all(self._nodes.settled(node, Ended(step, outcome)))
        for bad, ends in self._nodes.bad().items():
            self._move(bad, ends)

    def _put_back(self, step: Step) -> None:
        """Queue a step again that was not begun, or block it if a step that it needs has failed meanwhile."""
        before = [self.outcomes.get(need.key) for need in (*step.needs, *step.order_only)]
        failed = next((outcome for outcome in before if outcome is not None and outcome.status != "done"), None)
        if failed is not None:
            self._settle(step, Outcome("blocked", error=failed.cause))
            return
        self._queue.add([step], self._unfinished)

    @property
    def _unfinished(self) -> set[str]:
        """Keys of steps that run, or whose failure is held back."""
        return {step.key for step in self._running.values()} | self._nodes.held

    def _leave_out(self, node: str, why: str) -> None:
        """Give a node that cannot run steps no more steps. Raises ZSQBenchError if no other node is left."""
        if node in self._unfit:
            return
        self._unfit[node] = why
        everywhere = len(self._unfit) >= UNFIT and not self._nodes.any_good
        if everywhere or not self.engine.leave_out(node):
            told = "; ".join(f"node {name}: {reason}" for name, reason in self._unfit.items())
            raise ZSQBenchError(f"no step can run: {told}")
        log.warning("node %s is left out: %s", node, why)

    def _move(self, node: str, ends: Sequence[Ended]) -> None:
        """Try steps that failed on a bad node elsewhere."""
        if not self.engine.leave_out(node):
            self._settle_all(ends)
            return
        first = ends[0]
        told = f"{first.step.label}: {first.outcome.cause}"
        log.warning(
            "node %s is left out: all %d steps failed on it and are tried elsewhere; the first was %s",
            node,
            len(ends),
            told,
        )
        for ended in ends:
            self._put_back(ended.step)

    def _settle_all(self, ends: Iterable[Ended]) -> None:
        for ended in ends:
            self._settle(ended.step, ended.outcome)

    def _restart_if_broken(self) -> None:
        """Restart the executor with the next step, unless it replaces dead workers itself, as the pool does."""
        if not getattr(self._executor, "replaces_workers", False):
            self.close(kill=True)

    def _settle(self, step: Step, outcome: Outcome) -> None:
        self.leases.release(step.key)
        self.outcomes[step.key] = outcome
        if step.type.background and outcome.status == "failed":
            with contextlib.suppress(OSError):  # the end of the run reports it, too
                self.run_.store.note_failure(step.key, outcome.traceback or outcome.cause)
        self._settled.append(step)
        self._all_settled.append(step)
        self.run_.notify("step_finished", step=step, outcome=outcome)
        for blocked, why in self._queue.settle(step):
            self._settle(blocked, why)

    def _try_again(self, step: Step) -> bool:
        self._attempts[step.key] += 1
        if self._attempts[step.key] >= ATTEMPTS:
            return False
        self._queue.add([step], self._unfinished)
        return True

    def _try_elsewhere(self, step: Step, error: NodeLostError) -> bool:
        """Queue a step again whose node was lost. The step is probably not the cause."""
        self._losses[step.key] += 1
        if self._losses[step.key] >= LOSSES:
            return False
        log.warning("%s is tried again elsewhere: %s", step.label, error)
        self._queue.add([step])
        return True

    def _make_again(self, step: Step, damaged: str) -> bool:
        """Put a damaged artifact aside, and queue its step and this step again.

        This is not done if only a background step needs the artifact: a set may have taken hours. Any other step that
        needs the artifact will find the damage.
        """
        source = next((need for need in step.needs if need.key == damaged), None)
        if source is None or (step.type.background and damaged not in self._made_again):
            return False
        if damaged not in self._made_again:  # another step may have found the damage first
            self._made_again.add(damaged)
            self.run_.store.discard(damaged)
            self._queue.add([*self._missing_needs(source), source])
        return self._try_again(step)

    def _missing_needs(self, step: Step) -> list[Step]:
        missing: list[Step] = []
        for need in step.needs:
            if not self.run_.store.has(need.kind, need.key):
                missing += [*self._missing_needs(need), need]
        return missing

    def _show_progress(self) -> None:
        """Report the progress of running steps to observers, and the steps that have not reported for a long time."""
        for future, step in self._running.items():
            if not future.running():
                continue
            now = time.monotonic()
            before = self._news.setdefault(step.key, _News(Progress(), now))
            progress = read_progress(self.run_.store, step.key) or Progress()
            silent = int((now - before.since) // 60)
            if progress != before.progress:
                self._news[step.key] = _News(progress, now)
                self.run_.notify("step_progress", step=step, progress=progress)
            elif silent > before.silent:
                self._news[step.key] = replace(before, silent=silent)
                told = replace(progress, note=f"nothing heard for {silent} min")
                self.run_.notify("step_progress", step=step, progress=told)


def _death(error: BrokenExecutor, step: Step) -> str:
    """Why a worker died, with advice if the system may have killed it because memory was full."""
    said = str(error) or "the worker process died"
    advice = step.variant.method.advice_on_memory() if step.variant and "out of memory" in said else ""
    return f"{said}: {advice}" if advice else said
