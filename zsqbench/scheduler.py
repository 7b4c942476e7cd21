"""The one run loop: ready steps go to free slots; rows are written and hooks fired as steps finish."""

import contextlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsqbench.diagnosis import note_failure
from zsqbench.errors import CorruptArtifactError, NothingSelectedError, ZSQBenchError, one_line
from zsqbench.methods import Engine
from zsqbench.plan import (
    MINOR_STEPS,
    Data,
    ModelFacts,
    Outcome,
    Plan,
    PlannedCell,
    Progress,
    Step,
    Timings,
    find_data,
    job,
    make_plan,
    resolve_steps,
)
from zsqbench.results import Result, ResultFile, environment
from zsqbench.store import FileDigests, Store
from zsqbench.suite import Cell, Suite
from zsqbench.worker import Place, read_progress, run_step

POLL_SECONDS = 0.2
ATTEMPTS = 2
"""A step whose worker died is tried once more: the culprit may have been whatever else filled the memory."""

Facts = Mapping[tuple[str, str], ModelFacts | Outcome]
"""What is known of each (task, model)."""


@dataclass(frozen=True)
class Report:
    """What a run did."""

    plan: Plan
    results: list[Result]
    """One for each cell of the plan, in its order."""
    interrupted: bool
    undiagnosed: Mapping[str, str]
    """Why diagnostics could not be made, by the label of their step; no cell depends on that."""


@dataclass
class Run:
    """One invocation: a suite, where it runs, and where its rows go."""

    suite: Suite
    place: Place
    results: Path
    """Folder of the row files."""
    store: Store = field(init=False)
    data: dict[str, Data] = field(init=False, default_factory=dict)
    resolve: dict[tuple[str, str], Step] = field(init=False, default_factory=dict)
    """For each (task, model), the step that loads the model to learn its identity."""

    def __post_init__(self) -> None:
        self.store = Store(self.place.home)

    @property
    def rows(self) -> ResultFile:
        """The rows of the suite."""
        return ResultFile(self.results / f"{self.suite.name}.jsonl")

    def find(self, cells: Sequence[Cell]) -> dict[tuple[str, str], ModelFacts]:
        """Find the data and the model files of these cells; returns what earlier runs learnt of the models.

        Raises ZSQBenchError where a data root or a weights file is absent, before anything runs.
        """
        if all(cell.excluded for cell in cells):
            left = "all of them are excluded" if cells else "none is selected"
            raise NothingSelectedError(f"no cell of suite {self.suite.name} can run: {left}")
        digests = FileDigests(self.store)
        self.data = find_data(self.suite, cells, self.place.data_root, digests)
        self.resolve = resolve_steps(self.suite, cells, digests)
        try:
            digests.save()
        except OSError as error:
            raise ZSQBenchError(f"cannot write to {self.place.home}: {error.strerror}; see --home") from error
        return {pair: facts for pair, step in self.resolve.items() if (facts := self._facts(step)) is not None}

    def plan(self, cells: Sequence[Cell], facts: Facts) -> Plan:
        """Plan cells with what is known of their models; `find` comes before."""
        return make_plan(self.suite, cells, self.data, facts, self.store, self.rows.read())

    def execute(self, cells: Sequence[Cell], engine: Engine) -> Report:
        """Run these cells, whatever of them is not there yet. Ctrl-C ends it with what is done."""
        known = self.find(cells)
        loop = _Loop(self, engine)
        try:
            loop.run(step for pair, step in self.resolve.items() if pair not in known)
            facts: dict[tuple[str, str], ModelFacts | Outcome] = {
                pair: known.get(pair) or self._facts(step) or loop.outcomes[step.key]
                for pair, step in self.resolve.items()
            }
            plan = self.plan(cells, facts)
            results = self._run_plan(plan, loop, facts)
            self._keep_rows(plan, results)
        except BaseException:
            self.notify("suite_finished", suite=self.suite, results=[], table=None)
            raise
        finally:
            loop.close()
        failed = {key: outcome for key, outcome in loop.outcomes.items() if outcome.status == "failed"}
        undiagnosed = {
            step.label: cause(failed[key]) for key, step in plan.steps.items() if key in failed and _is_minor(step)
        }
        return Report(plan, results, loop.interrupted, undiagnosed)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Fire an observer hook; an observer that fails is a warning, never a lost cell."""
        try:
            getattr(self.suite.catalog.hooks.hook, hook)(**arguments)
        except Exception as error:  # noqa: BLE001 - a stranger's observer may raise anything
            logging.getLogger("zsqbench").warning("an observer failed in %s: %s", hook, one_line(error))

    def _facts(self, step: Step) -> ModelFacts | None:
        """What loading a model told an earlier step."""
        if not self.store.has("resolve", step.key):
            return None
        try:
            return ModelFacts(**self.store.read_json("resolve", step.key, "facts.json"))
        except (CorruptArtifactError, TypeError):  # the latter: written by another version of zsqbench
            self.store.discard(step.key)
            return None

    def _run_plan(self, plan: Plan, loop: "_Loop", facts: Facts) -> list[Result]:
        recorder = _Recorder(self, plan, facts, loop.outcomes)
        try:
            self.notify("suite_started", suite=self.suite, plan=plan)
            for planned in plan.cells:
                if plan.is_finished(planned):
                    recorder.keep(planned)
                elif not planned.steps:
                    recorder.record(planned)
            self._verify(plan, recorder.missing())
            if not loop.interrupted:
                loop.facts = facts
                loop.run(plan.to_do(recorder.missing()).values(), recorder.record_settled)
        except KeyboardInterrupt:
            loop.interrupt()
        for planned in recorder.missing():
            recorder.record(planned)
        return recorder.results()

    def _verify(self, plan: Plan, cells: Sequence[PlannedCell]) -> None:
        """Put damaged measurements aside, so that they are made again rather than believed."""
        for key in {step.key for planned in cells for step in planned.final.values()} & plan.cached:
            try:
                self.store.read(plan.steps[key].kind, key)
            except CorruptArtifactError:
                self.store.discard(key)
                plan.cached.discard(key)

    def _keep_rows(self, plan: Plan, results: Sequence[Result]) -> None:
        """Rewrite the row file in the order of the suite; only rows of cells that the suite no longer has, go."""
        new = {result.cell: result for result in results}
        if all(plan.rows.get(name) is result for name, result in new.items()) and len(new) == len(plan.rows):
            return
        there = self.rows.read()  # again: another run of the suite may have added some
        rows = there | new
        ordered = [rows[cell.name] for cell in self.suite.cells if cell.name in rows]
        _write_rows(self.rows, lambda rows: rows.rewrite(ordered))


class _Queue:
    """The steps that wait: which of them are ready, in order, and which wait for which."""

    def __init__(self, outcomes: dict[str, Outcome]) -> None:
        self._outcomes = outcomes
        self._waiting: dict[str, Step] = {}
        self._unmet: dict[str, set[str]] = {}
        self._dependents: dict[str, list[Step]] = {}
        self._ready: list[tuple[bool, int, str]] = []
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
            before = (*step.needs, *step.after)
            self._unmet[step.key] = {need.key for need in before if need.key in self._waiting or need.key in running}
            for need in self._unmet[step.key]:
                self._dependents.setdefault(need, []).append(step)
            self._make_ready(step)

    def take(self) -> Step | None:
        """The first step that is ready, if any; a minor one only where no other is."""
        while self._ready:
            *_, key = heapq.heappop(self._ready)
            if key in self._waiting and not self._unmet[key]:
                return self._waiting.pop(key)
        return None

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
                blocked.append((dependent, Outcome("blocked", error=cause(outcome))))
        return blocked

    def _make_ready(self, step: Step) -> None:
        if not self._unmet[step.key]:
            heapq.heappush(self._ready, (_is_minor(step), self._order[step.key], step.key))


class _Loop:
    """Keeps ready steps and free slots; one submission per free slot."""

    def __init__(self, run: Run, engine: Engine) -> None:
        self.run_ = run
        self.engine = engine
        self.timings = Timings(run.store)
        self.facts: Facts = {}
        self.outcomes: dict[str, Outcome] = {}
        self.interrupted = False
        self._queue = _Queue(self.outcomes)
        self._running: dict[Future[Outcome], Step] = {}
        self._attempts: Counter[str] = Counter()
        self._made_again: set[str] = set()
        self._settled: list[Step] = []
        self._executor: Executor | None = None
        self._shown: dict[str, Progress] = {}

    def run(self, steps: Iterable[Step], after: Callable[[list[Step]], None] = lambda _: None) -> None:
        """Run steps, each after what it needs; call `after` with those that are settled, whenever some are.

        Ctrl-C ends it: what is not settled then is interrupted.
        """
        try:
            self._queue.add(steps)
            while self._queue or self._running:
                self._fill_slots()
                done, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    self._finish(self._running.pop(future), future)
                self._fill_slots()  # before rows are written, so that no slot waits for that
                if not done:
                    self._show_progress()
                after(self._take_settled())
        except KeyboardInterrupt:
            self.interrupt()

    def interrupt(self) -> None:
        """Stop at once."""
        self.interrupted = True
        for step in [*self._running.values(), *self._queue.steps()]:
            self.outcomes[step.key] = Outcome("interrupted", error="the run was interrupted")
        self.close(kill=True)

    def close(self, *, kill: bool = False) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=not kill, cancel_futures=kill)
            self._executor = None

    def _take_settled(self) -> list[Step]:
        settled, self._settled = self._settled, []
        return settled

    def _fill_slots(self) -> None:
        while self._queue and len(self._running) < self.engine.slots():
            step = self._queue.take()
            if step is None:
                return
            try:
                self._running[self._submit(step)] = step
            except KeyboardInterrupt:  # an engine that runs steps where they are submitted
                self._queue.add([step])
                raise
            except Exception as error:  # noqa: BLE001 - an engine may fail in any way; it is this step's failure
                self.close(kill=True)
                self._settle(step, Outcome("failed", error=f"the engine did not take it: {one_line(error)}"))

    def _submit(self, step: Step) -> "Future[Outcome]":
        if self._executor is None:
            self._executor = self.engine.start()
        facts = self.facts.get((step.cell.task, step.cell.model))
        resolve = self.run_.resolve[step.cell.task, step.cell.model].key
        resolved = facts.digest if isinstance(facts, ModelFacts) else None
        description = job(self.run_.suite, step, self.run_.data) | {"resolve": resolve, "resolved": resolved}
        return self._executor.submit(run_step, self.run_.place, description)

    def _finish(self, step: Step, future: "Future[Outcome]") -> None:
        try:
            outcome = future.result()
        except BrokenExecutor:
            outcome = Outcome("failed", error="the worker process died (killed, out of memory, or it called exit)")
            self._restart_if_broken()
            if self._try_again(step):
                return
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way; it is this step's failure
            outcome = Outcome("failed", error=one_line(error))
        if outcome.damaged is not None and self._make_again(step, outcome.damaged):
            return
        if outcome.status == "done" and step.kin:
            self.timings.add(step, outcome.seconds)
        self._settle(step, outcome)

    def _restart_if_broken(self) -> None:
        """Start the executor anew with the next step, unless it replaces dead workers itself, as the pool does."""
        if not getattr(self._executor, "replaces_workers", False):
            self.close(kill=True)

    def _settle(self, step: Step, outcome: Outcome) -> None:
        self.outcomes[step.key] = outcome
        if _is_minor(step) and outcome.status == "failed":
            with contextlib.suppress(OSError):  # it is told at the end of the run, too
                note_failure(self.run_.store, step.key, outcome.traceback or cause(outcome))
        self._settled.append(step)
        self.run_.notify("step_finished", step=step, outcome=outcome)
        for blocked, why in self._queue.settle(step):
            self._settle(blocked, why)

    def _try_again(self, step: Step) -> bool:
        self._attempts[step.key] += 1
        if self._attempts[step.key] >= ATTEMPTS:
            return False
        self._queue.add([step], {running.key for running in self._running.values()})
        return True

    def _make_again(self, step: Step, damaged: str) -> bool:
        """Put a damaged artifact aside, and its step and this one back into the queue.

        Not for a minor step alone: a set may have taken hours, and whoever needs it for more finds the damage, too.
        """
        source = next((need for need in step.needs if need.key == damaged), None)
        if source is None or (_is_minor(step) and damaged not in self._made_again):
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
        for step in self._running.values():
            progress = read_progress(self.run_.store, step.key)
            if progress is not None and progress != self._shown.get(step.key):
                self._shown[step.key] = progress
                self.run_.notify("step_progress", step=step, progress=progress)


class _Recorder:
    """Turns settled cells into rows, each once."""

    def __init__(self, run: Run, plan: Plan, facts: Facts, outcomes: Mapping[str, Outcome]) -> None:
        self.run = run
        self.plan = plan
        self.facts = facts
        self.outcomes = outcomes
        self._results: dict[str, Result] = {}
        self._environment = environment()
        self._ending_with: dict[str, list[PlannedCell]] = {}
        for planned in plan.cells:
            for step in planned.final.values():
                self._ending_with.setdefault(step.key, []).append(planned)

    def results(self) -> list[Result]:
        """The rows in the order of the plan."""
        return [self._results[planned.cell.name] for planned in self.plan.cells]

    def missing(self) -> list[PlannedCell]:
        """The cells without a row yet."""
        return [planned for planned in self.plan.cells if planned.cell.name not in self._results]

    def keep(self, planned: PlannedCell) -> None:
        """Take over the row of an earlier run, with what the suite's papers say of it now."""
        result, published = self.plan.rows[planned.cell.name], self.run.suite.published_of(planned.cell)
        if result.published != published:
            result = result.model_copy(update={"published": published})
        self._results[planned.cell.name] = result
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=True)

    def record_settled(self, steps: Iterable[Step]) -> None:
        """Write the rows of the cells that came to their end with these steps."""
        for planned in (planned for step in steps for planned in self._ending_with.get(step.key, ())):
            settled = all(map(self._is_settled, planned.final.values()))
            if settled and planned.cell.name not in self._results:
                self.record(planned)

    def record(self, planned: PlannedCell) -> None:
        """Write the row of a cell, unless an earlier row says the same or, after an interruption, more."""
        result = self._result(planned)
        before = self.plan.rows.get(planned.cell.name)
        if before is not None and before.definition == result.definition:
            as_before = not planned.steps or before.keys == result.keys
            if result == before or (result.status == "interrupted" and before.status == "done" and as_before):
                self.keep(planned)
                return
        self._results[planned.cell.name] = result
        _write_rows(self.run.rows, lambda rows: rows.append(result))
        self.run.notify("cell_finished", suite=self.run.suite, result=result, cached=False)

    def _is_settled(self, step: Step) -> bool:
        return step.key in self.outcomes or step.key in self.plan.cached

    def _is_measured(self, step: Step) -> bool:
        outcome = self.outcomes.get(step.key)
        return outcome.status == "done" if outcome else step.key in self.plan.cached

    def _result(self, planned: PlannedCell) -> Result:
        cell, suite = planned.cell, self.run.suite
        facts = self.facts.get((cell.task, cell.model))
        generator = suite.generator(cell)
        variants = {"task": suite.tasks[cell.task], "quantizer": suite.quantizers[cell.quantizer]}
        if cell.generator is not None:
            variants["generator"] = suite.generators[cell.generator]
        return Result(
            suite=suite.name,
            cell=cell.name,
            definition=suite.definition(cell),
            task=cell.task,
            model=cell.model,
            generator=cell.generator,
            quantizer=cell.quantizer,
            scheme=cell.scheme,
            seed=cell.seed,
            settings=cell.settings.model_dump(mode="json"),
            metric=suite.task(cell.task).metric,
            methods={kind: variant.describe() for kind, variant in variants.items()},
            model_facts=vars(facts) if isinstance(facts, ModelFacts) else {},
            data_free=generator is None or not generator.uses_real_data,
            published=suite.published_of(cell),
            keys=planned.keys,
            **{"environment": self._environment} | self._ending(planned),
        )

    def _ending(self, planned: PlannedCell) -> dict[str, Any]:
        """How it ended: what was measured, or what went wrong first."""
        if not planned.steps:
            return {"status": planned.status, "reason": planned.reason, "traceback": planned.traceback}
        if all(map(self._is_measured, planned.final.values())):
            return {"status": "done"} | self._measured(planned)
        for name, step in planned.named.items():
            outcome = self.outcomes.get(step.key)
            if outcome is not None and outcome.status in {"failed", "interrupted"}:
                label = f" {step.quantizer.label}" if name in planned.starts and step.quantizer else ""
                reason = f"{name}{label}: {outcome.error}"
                ending = {"status": outcome.status, "reason": reason, "traceback": outcome.traceback}
                return ending | self._float_metrics(planned)
        return {"status": "interrupted", "reason": "the run was interrupted"}

    def _float_metrics(self, planned: PlannedCell) -> dict[str, Any]:
        """What the float network reached, where that much is known."""
        baseline = planned.steps["baseline"]
        if not self.run.store.has("baseline", baseline.key):
            return {}
        evaluation = self.run.store.read_json("baseline", baseline.key, "evaluation.json")
        return {
            "float_metrics": evaluation["metrics"],
            "data": {"evaluated": evaluation["samples"], "calibrated": None},
        }

    def _measured(self, planned: PlannedCell) -> dict[str, Any]:
        store = self.run.store
        measured = {kind: step.key for kind, step in planned.final.items() if kind != "oracle"}
        evaluations = {kind: store.read_json(kind, key, "evaluation.json") for kind, key in measured.items()}
        manifests = {}
        for name, step in planned.named.items():
            # What was measured is known without them: images and network may be gone, or damaged.
            with contextlib.suppress(CorruptArtifactError):
                manifests[name] = store.manifest(step.kind, step.key)
        return {
            "metrics": evaluations["evaluate"]["metrics"] | self._agreement(measured["baseline"], measured["evaluate"]),
            "float_metrics": evaluations["baseline"]["metrics"],
            "oracle": self._oracle(planned),
            "data": {
                "evaluated": evaluations["evaluate"]["samples"],
                "calibrated": manifests["evaluate"]["calibrated"],
            },
            "tensors": manifests["evaluate"]["tensors"] or {},
            "environment": manifests["evaluate"]["environment"],
            "seconds": {name: round(manifest["seconds"], 3) for name, manifest in manifests.items()},
            "peak_memory": {name: manifest["peak_memory"] for name, manifest in manifests.items()},
        }

    def _agreement(self, baseline: str, evaluate: str) -> dict[str, float]:
        """Percent of the samples of which both networks predict the same; nothing where predictions are not known."""
        import numpy as np

        store = self.run.store  # which verified these files when the metrics were read
        files = [store.folder("baseline", baseline), store.folder("evaluate", evaluate)]
        files = [folder / "predictions.npy" for folder in files]
        if not all(file.is_file() for file in files):
            return {}
        first, second = (np.load(file, allow_pickle=False) for file in files)
        if first.shape != second.shape:
            return {}
        return {"agreement": 100 * float(((first == second) & (first >= 0)).mean())}

    def _oracle(self, planned: PlannedCell) -> dict[str, Any]:
        """The best of the kept epochs, of a cell that has such a step."""
        if "oracle" not in planned.steps:
            return {}
        found = self.run.store.read_json("oracle", planned.steps["oracle"].key, "oracle.json")
        return {**found["best"], "of": len(found["epochs"])}


def _is_minor(step: Step) -> bool:
    return step.kind in MINOR_STEPS


def cause(outcome: Outcome) -> str:
    """Why a step is not done."""
    return outcome.error or outcome.status


def _write_rows(rows: ResultFile, write: Callable[[ResultFile], None]) -> None:
    try:
        write(rows)
    except OSError as error:
        text = f"cannot write {rows.path}: {error.strerror}; what is done is in the store, run again with space"
        raise ZSQBenchError(text) from error
