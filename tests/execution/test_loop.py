import os
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import pytest
from brief import parametrize_briefly
from faults import flip, rewrite_manifest
from runs import Started

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.engines import Pool
from zsqbench.execution.loop import Loop
from zsqbench.execution.nodes import NodeFuture
from zsqbench.execution.processes import WorkerDiedError
from zsqbench.leases import Leases
from zsqbench.methods import Engine, Settings
from zsqbench.methods.engine import GroupExecutor, NodeLostError, NodeUnfitError, NotBegunError
from zsqbench.steps import Job, Outcome, Step
from zsqbench.store import Store
from zsqbench.suite import Cell


def test_a_failing_quantizer_blocks_only_its_own_cells(bench):
    bench.add_plugin(
        "class Bad(ToyQuantizer):\n    name = 'bad'\n    def quantize(self, *all): raise RuntimeError('no')\n"
    )
    bench.matrix("quantizer: [bad, toyq], seed: [0, 1]")
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (1, ["failed", "failed", "done", "done"])


def test_a_failing_generator_fails_once_and_blocks_all_that_needs_it(bench):
    bench.add_plugin(
        "class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): note('bad'); raise RuntimeError('no')\n"
    )
    bench.matrix("generator: [bad, toy], quantizer: [toyq, unseeded]")
    bench.run()
    reasons = [row.get("reason") for row in bench.rows().values()]
    assert (bench.calls().count("bad"), reasons) == (1, ["generate: RuntimeError: no"] * 2 + [None] * 2)


def test_a_network_without_batch_normalisation_runs_with_methods_that_need_none(bench):
    bench.matrix("model: without_bn")
    bench.run()
    assert list(bench.statuses().values()) == ["done"]


def test_a_failed_cell_is_tried_again_by_the_next_run(bench):
    bench.add_plugin("""
class Moody(Toy):
    name = "moody"
    def generate(self, teacher, ctx):
        if not (HERE / "ready").exists():
            raise RuntimeError("not yet")
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: moody")
    first = bench.run().code
    bench.write("ready", "")
    assert (first, bench.run().code) == (1, 0)


KINDS = ("resolve", "baseline", "generate", "quantize", "evaluate")


FILES = {
    "baseline": "samples.safetensors",
    "generate": "calibration.safetensors",
    "quantize": "model.safetensors",
    "evaluate": "samples.safetensors",
}


def damage_another_schema(folder):
    rewrite_manifest(folder, schema=1)


def damage_a_byte_of_the_manifest(folder):
    flip(folder / "manifest.json")


def damage_a_byte_of_its_file(folder):
    flip(folder / FILES[folder.parent.name])


@parametrize_briefly(
    "damage,kind",
    [
        (damage_another_schema, "resolve"),
        (damage_a_byte_of_the_manifest, "baseline"),
        (damage_a_byte_of_its_file, "generate"),
        (damage_a_byte_of_its_file, "quantize"),
        (damage_a_byte_of_its_file, "evaluate"),
        *((damage_another_schema, kind) for kind in KINDS[1:]),
        *((damage_a_byte_of_the_manifest, kind) for kind in KINDS if kind != "baseline"),
        (damage_a_byte_of_its_file, "baseline"),
    ],
    5,
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_artifact_is_made_again(bench, damage, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    damage(folder)
    (bench.results / "toysuite.jsonl").unlink()
    for later in KINDS[KINDS.index(kind) + 1 :] if kind in ("generate", "quantize") else ():
        for path in bench.artifacts(later):
            path.rename(bench.folder / path.name)
    said = bench.run()
    damaged = [path.name.split("-")[0] for path in (bench.home / "damaged").iterdir()]
    assert (said.code, list(bench.statuses().values()), damaged) == (0, ["done"], [kind]), said.err
    assert bench.artifact(kind).folder == folder


@parametrize_briefly("kind", ["resolve", "evaluate", "baseline", "generate", "quantize"], 2)
@pytest.mark.parametrize("content", ["", '{"files": {}}'])
def test_a_damaged_manifest_stops_no_run(bench, kind, content):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    (folder / "manifest.json").write_text(content)
    (bench.results / "toysuite.jsonl").unlink()
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (0, ["done"]), said.err


@pytest.mark.parametrize("kind", ["baseline", "evaluate"])
def test_the_next_run_makes_again_what_verify_put_aside(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    flip(next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json"))
    bench.zsqbench("cache", "verify", "--home", bench.home)
    again = bench.run()
    assert (0, [folder]) == (again.code, bench.artifacts(kind))


# --- exclusive and background steps: a fake engine, and steps that only meet each other -----------------------------


class Plain(Job):
    kind: ClassVar[str] = "plain"

    @classmethod
    def of(cls, step, *_):
        return step


class Timed(Plain):
    kind: ClassVar[str] = "timed"
    exclusive: ClassVar[bool] = True


class Aside(Plain):
    kind: ClassVar[str] = "aside"
    background: ClassVar[bool] = True


class Meetings(ThreadPoolExecutor):
    """Notes which steps run at the same time. A step that has `partners` ends when as many others run beside it."""

    replaces_workers = True

    def __init__(self, slots, partners, outcomes):
        super().__init__(slots)
        self._changed = threading.Condition()
        self._partners, self._outcomes = partners, outcomes
        self.running, self.met, self.order = set(), {}, []

    def submit(self, fn, config, step):
        return super().submit(self._meet, step.key)

    def _meet(self, name):
        with self._changed:
            self.order.append(name)
            self.running.add(name)
            for other in self.running:
                self.met.setdefault(other, set()).update(self.running - {other})
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: len(self.met[name]) >= self._partners.get(name, 0), 20)
        time.sleep(0.02)  # in which whatever else is started would be met
        with self._changed:
            self.running.discard(name)
        outcome = self._outcomes.get(name, Outcome("done"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FakeEngine(Engine):
    name: ClassVar[str] = "fake"

    def slots(self):
        return 3

    def start(self):
        return self._meetings

    def meet(self, partners=None, outcomes=None):
        """The steps that are started are these."""
        object.__setattr__(self, "_meetings", Meetings(3, partners or {}, outcomes or {}))
        return self


def loop_of(tmp_path, engine):
    """A loop over steps that are no part of a suite, and the hooks that it fires."""
    heard = []
    run = SimpleNamespace(
        store=Store(tmp_path),
        config=None,
        suite=None,
        data={},
        resolve={("t", "m"): SimpleNamespace(key="resolve")},
        notify=lambda hook, **arguments: heard.append((hook, arguments["step"].key)),
    )
    return Loop(run, engine, Leases(tmp_path)), heard


def step(name, *needs, job=Plain):
    return Step(job, name, name, needs, Cell("t", "m", "g", "q", "hw/w4a4", 0, Settings()))


def test_an_exclusive_step_runs_while_nothing_else_does(tmp_path):
    engine = FakeEngine().meet({"a": 2, "b": 2, "c": 2})
    loop, _ = loop_of(tmp_path, engine)
    a, b, c = (step(name) for name in "abc")
    timed = [step("first timed", job=Timed), step("second timed", a, job=Timed)]
    loop.run([*timed, a, b, c, step("later", b), step("aside", c, job=Aside)])
    loop.close()
    met = engine.start().met
    assert {name: loop.outcomes[name].status for name in met} == dict.fromkeys(met, "done")
    assert (len(met), met["first timed"], met["second timed"]) == (7, set(), set())
    assert met["a"] >= {"b", "c"}  # the others did meet


def test_an_exclusive_step_runs_before_background_steps_and_after_what_is_ready(tmp_path):
    engine = FakeEngine().meet()
    loop, _ = loop_of(tmp_path, engine)
    loop.run([step("aside", job=Aside), step("timed", job=Timed), step("a"), step("b")])
    loop.close()
    assert engine.start().order[2:] == ["timed", "aside"]


def test_a_background_step_that_fails_blocks_nothing_and_its_reason_is_kept(tmp_path):
    engine = FakeEngine().meet(outcomes={"aside": Outcome("failed", error="nobody cares", traceback="a long story")})
    loop, heard = loop_of(tmp_path, engine)
    settled = []
    loop.run([step("aside", job=Aside), step("a"), step("b", step("a"))], settled.extend)
    loop.close()
    assert {name: outcome.status for name, outcome in loop.outcomes.items()} == {
        "a": "done",
        "b": "done",
        "aside": "failed",
    }
    assert loop.background_failures() == {"aside": "nobody cares"}
    assert Store(tmp_path).failures("aside") == ["a long story"]
    assert sorted(each.key for each in settled) == sorted(key for _, key in heard) == ["a", "aside", "b"]


def test_a_step_that_fails_is_settled_with_all_that_it_blocks(tmp_path):
    engine = FakeEngine().meet(outcomes={"a": Outcome("failed", error="no")})
    loop, heard = loop_of(tmp_path, engine)
    a = step("a")
    b = step("b", a)
    loop.run([a, b, step("c", b), step("timed", b, job=Timed)])
    loop.close()
    assert {name: (outcome.status, outcome.cause) for name, outcome in loop.outcomes.items()} == {
        "a": ("failed", "no"),
        **dict.fromkeys(("b", "c", "timed"), ("blocked", "no")),
    }
    assert {key for _, key in heard} == {"a", "b", "c", "timed"}
    assert loop.background_failures() == {}


def test_a_step_is_tried_on_five_nodes_that_are_lost(tmp_path, caplog):
    engine = FakeEngine().meet(outcomes={"a": NodeLostError("its node was lost")})
    loop, _ = loop_of(tmp_path, engine)
    loop.run([step("a"), step("b")])
    loop.close()
    assert (loop.outcomes["a"], loop.outcomes["b"].status) == (Outcome("failed", error="its node was lost"), "done")
    assert engine.start().order.count("a") == 5
    assert [record.message for record in caplog.records] == ["a is tried again elsewhere: its node was lost"] * 4


class Noded(Executor):
    """Runs a step at once, on the node that has the fewest; a node fails all its steps, or is unfit for them."""

    replaces_workers = True

    def __init__(self, nodes):
        self.nodes = nodes
        self.order = []

    def submit(self, fn, config, step):
        counts = Counter(node for node, _ in self.order)
        node = min(self.nodes, key=lambda node: counts[node])
        self.order.append((node, step.key))
        future = NodeFuture()
        future.node = node
        found = self.nodes[node]
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future


class NodedEngine(FakeEngine):
    def on(self, **nodes):
        object.__setattr__(self, "_meetings", Noded(nodes))
        return self

    def leave_out(self, node):
        left = {other: found for other, found in self._meetings.nodes.items() if other != node}
        self._meetings.nodes = left or self._meetings.nodes
        return bool(left)


BROKEN = Outcome("failed", error="no CUDA")


def test_a_node_that_fails_all_it_gets_is_left_out_and_its_steps_are_done_elsewhere(tmp_path, caplog):
    engine = NodedEngine().on(n1=BROKEN, n2=Outcome("done"))
    loop, heard = loop_of(tmp_path, engine)
    steps = [step(f"s{number}") for number in range(8)]
    loop.run([*steps, step("last", steps[0])])
    loop.close()
    assert {outcome.status for outcome in loop.outcomes.values()} == {"done"}
    assert len(heard) == 9  # each step ends once
    assert [node for node, _ in engine.start().order].count("n1") == 3
    assert [record.message for record in caplog.records] == [
        "node n1 is left out: all 3 steps failed on it and are tried elsewhere; the first was s0: no CUDA"
    ]


def test_a_step_that_fails_everywhere_fails_once(tmp_path, caplog):
    engine = NodedEngine().on(n1=BROKEN, n2=BROKEN, n3=BROKEN)
    loop, heard = loop_of(tmp_path, engine)
    steps = [step(f"s{number}") for number in range(12)]
    loop.run([*steps, step("last", steps[0])])
    loop.close()
    assert [loop.outcomes[each.key] for each in steps] == [BROKEN] * 12
    assert loop.outcomes["last"] == Outcome("blocked", error="no CUDA")
    assert (len(heard), len(engine.start().order), caplog.records) == (13, 12, [])


def test_an_unfit_node_is_left_out_at_once_and_no_step_is_to_blame(tmp_path, caplog):
    engine = NodedEngine().on(n1=NodeUnfitError("it has torch 2.5.0"), n2=Outcome("done"))
    loop, _ = loop_of(tmp_path, engine)
    loop.run([step(name) for name in "abcd"])
    loop.close()
    assert {outcome.status for outcome in loop.outcomes.values()} == {"done"}
    assert [record.message for record in caplog.records] == ["node n1 is left out: it has torch 2.5.0"]


def test_a_run_ends_where_no_node_is_fit(tmp_path):
    unfit = NodeUnfitError("it does not see the home folder")
    engine = NodedEngine().on(n1=unfit, n2=unfit)
    loop, _ = loop_of(tmp_path, engine)
    with pytest.raises(ZSQBenchError) as raised:
        loop.run([step(name) for name in "abcd"])
    loop.close()
    each = "it does not see the home folder"
    assert str(raised.value) == f"no step can run: node n1: {each}; node n2: {each}"


class Grouping(GroupExecutor):
    """Does groups at once, in its own way for some steps."""

    replaces_workers = True

    def __init__(self, **ends):
        self.ends, self.groups = ends, []

    def submit_group(self, fn, config, jobs, after):
        steps = [job.key for job in jobs]
        self.groups.append((steps, [list(each) for each in after]))
        futures = []
        for name in steps:
            future = Future()
            ends = self.ends.get(name, [])
            end = ends.pop(0) if ends else Outcome("done")
            future.set_exception(end) if isinstance(end, Exception) else future.set_result(end)
            futures.append(future)
        return futures


class GroupingEngine(FakeEngine):
    def grouping(self, **ends):
        object.__setattr__(self, "_meetings", Grouping(**ends))
        return self


def chains(*names):
    """For each name, a set with two cells of two steps, and a step aside."""
    found = []
    for name in names:
        made = step(f"{name} set")
        cells = [step(f"{name} quantize {number}", made) for number in (1, 2)]
        found += [made, step(f"{name} aside", made, job=Aside), *cells]
        found += [step(f"{name} evaluate {number}", cell) for number, cell in enumerate(cells, 1)]
    return found


def test_a_group_is_a_set_with_what_hangs_on_it_cell_by_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("zsqbench.execution.grouping.UNKNOWN", 20.0)  # of six steps, which are 120 s
    engine = GroupingEngine().grouping()
    loop, _ = loop_of(tmp_path, engine)
    loop.run(chains("a", "b"))
    loop.close()
    (first, after), (second, _) = engine.start().groups
    told = "a set", "a aside", "a quantize 1", "a evaluate 1", "a quantize 2", "a evaluate 2"
    assert (first, second) == ([*told], [name.replace("a ", "b ", 1) for name in told])
    assert after == [[], [0], [0], [2], [0], [4]]


def test_an_exclusive_step_is_a_group_of_its_own(tmp_path):
    engine = GroupingEngine().grouping()
    loop, _ = loop_of(tmp_path, engine)
    made = step("set")
    loop.run([made, step("timed", made, job=Timed), step("other", made)])
    loop.close()
    assert [group for group, _ in engine.start().groups] == [["set", "other"], ["timed"]]


def test_groups_grow_with_the_work_and_prices_are_those_of_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("zsqbench.execution.grouping.Estimates.of", lambda *_: SimpleNamespace(seconds=60.0))
    engine = GroupingEngine().grouping()
    loop, _ = loop_of(tmp_path, engine)
    loop.run(step(str(number)) for number in range(100))
    loop.close()
    sizes = [len(group) for group, _ in engine.start().groups]
    assert sizes == [10] * 10  # ten minutes at most; a share would be 2,000 s


def test_what_was_not_begun_waits_again_and_a_dead_step_is_tried_once_more(tmp_path):
    died, waits = WorkerDiedError("its job ended"), NotBegunError("not begun")
    engine = GroupingEngine().grouping(a=[died], b=[waits])
    loop, heard = loop_of(tmp_path, engine)
    a = step("a")
    loop.run([a, step("b", a)])
    loop.close()
    assert {name: outcome.status for name, outcome in loop.outcomes.items()} == {"a": "done", "b": "done"}
    assert [group for group, _ in engine.start().groups] == [["a", "b"], ["a", "b"]]
    assert [key for _, key in heard] == ["a", "b"]


def test_a_step_that_another_run_gave_up_waits_for_those_of_its_group_that_still_run(tmp_path):
    loop, _ = loop_of(tmp_path, GroupingEngine().grouping())
    a = step("a")
    b = step("b", a)
    running = Future()
    loop._running, loop._elsewhere = {running: a}, {"b": b}
    loop._look_elsewhere()
    assert (loop._elsewhere, loop._queue.steps(), loop._queue.take(idle=False)) == ({}, [b], None)


def test_what_was_not_begun_is_blocked_by_a_step_that_died_twice(tmp_path):
    died, waits = WorkerDiedError("its job ended"), NotBegunError("not begun")
    engine = GroupingEngine().grouping(a=[died, died], b=[waits, waits])
    loop, _ = loop_of(tmp_path, engine)
    a = step("a")
    loop.run([a, step("b", a)])
    loop.close()
    failed = Outcome("failed", error="its job ended")
    assert loop.outcomes == {"a": failed, "b": Outcome("blocked", error="its job ended")}


class Checked(FakeEngine):
    def check(self, config):
        self._meetings.order.append("check")
        if "b" in self._meetings.order:
            raise ZSQBenchError("a node is blind")


def test_an_engine_is_checked_once_and_before_the_first_step(tmp_path):
    engine = Checked().meet()
    loop, _ = loop_of(tmp_path, engine)
    loop.run([])
    loop.run([step("a")])
    loop.run([step("b")])
    loop.close()
    assert engine.start().order == ["check", "a", "b"]


def test_a_run_ends_where_the_engine_says_that_no_step_can_run(tmp_path):
    engine = Checked().meet()
    engine.start().order.append("b")
    loop, heard = loop_of(tmp_path, engine)
    with pytest.raises(ZSQBenchError, match="a node is blind"):
        loop.run([step("a")])
    assert (heard, engine.start().order) == ([], ["b", "check"])


# --- the pool: real processes ---------------------------------------------------------------------------------------


def test_the_pool_survives_whatever_a_method_does_to_its_worker(bench):
    """One start for all: each start of a worker takes seconds."""
    bench.add_plugin("""
class Exits(Toy):
    name = "exits"
    def generate(self, *all): sys.exit(0)

class Dies(Toy):
    name = "dies"
    def generate(self, *all): note("dies"); os._exit(3)

class Raises(Toy):
    name = "raises"
    def generate(self, *all): raise ValueError("no")
""")
    bench.matrix("generator: [toy, exits, dies, raises, toyreal]")
    said = bench.run(workers=2)
    reasons = {row["generator"]: (row["status"], row.get("reason")) for row in bench.rows().values()}
    died = "generate: the worker process died: the step ended it with exit code 3"
    expected = {
        "toy": ("done", None),
        "exits": ("failed", "generate: SystemExit: 0"),
        "dies": ("failed", died),
        "raises": ("failed", "generate: ValueError: no"),
        "toyreal": ("done", None),
    }
    assert (1, expected, 2) == (said.code, reasons, bench.calls().count("dies"))


def test_the_pool_makes_the_artifacts_that_one_process_makes(bench):
    bench.matrix("")
    bench.write("draw", "")
    bench.run_anew("here")
    (here,) = bench.rows().values()
    bench.run_anew("pool", workers=1)
    (pool,) = bench.rows().values()
    assert [here[name] for name in ("keys", "metrics", "definition")] == [
        pool[name] for name in ("keys", "metrics", "definition")
    ]


ENDINGS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.mark.parametrize(
    "name",
    ["SIGINT", *(pytest.param(name, marks=pytest.mark.slow("one signal shows it")) for name in ("SIGTERM", "SIGHUP"))],
)
def test_a_signal_ends_the_pool_at_once_with_valid_rows_and_a_table(bench, name):
    run = Started(bench, "generator: [toy, slow]")
    run.wait_for("started")
    run.process.send_signal(signal.Signals[name])
    code, said = run.end()
    assert code == ENDINGS[name], said
    assert list(bench.statuses().values()) == ["done", "interrupted"], said
    assert "interrupted" in (bench.results / "toysuite.md").read_text()


HANGS_AT_THE_END = """
import time
@zsqbench.hookimpl
def suite_finished(table):
    (HERE / "finishing").touch()
    time.sleep(600)
"""


@pytest.mark.slow("it starts a run, which imports torch; another test sends a signal to a run each time")
def test_a_signal_while_observers_take_their_leave_keeps_the_table_and_a_second_ends_it_at_once(bench):
    run = Started(bench, "generator: [toy, slow]", more=HANGS_AT_THE_END)
    run.wait_for("started")
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("finishing")
    assert "interrupted" in (bench.results / "toysuite.md").read_text()
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130


def test_a_step_that_takes_too_long_is_a_failed_cell_and_the_others_go_on(bench):
    code, said = Started(bench, "generator: [slow, toy]", "--step-timeout", 5).end()
    failed, done = bench.rows().values()
    assert (code, failed["status"], done["status"]) == (1, "failed", "done"), said
    assert failed["reason"].startswith("generate: it ran for longer than 5 s, the limit for a step")


def test_the_limit_of_a_suite_holds_unless_the_command_gives_another(bench, monkeypatch):
    limits = set()
    monkeypatch.setattr(Pool, "start", lambda pool: limits.add((pool.step_timeout, pool.memory)) or 1 / 0)
    bench.matrix("", head="step_timeout: 90")
    bench.run(workers=1)
    bench.run("--step-timeout", 7, "--memory", 0.5, workers=1)
    assert limits == {(90.0, None), (7.0, 2**29)}


@pytest.mark.parametrize("option", [("--step-timeout", 5), ("--memory", 1), ("--isolation", "step")])
def test_limits_of_workers_are_refused_where_there_are_none(bench, option):
    said = bench.run(*option)
    text = "needs worker processes, but --workers 0 runs steps in this process"
    assert (said.code, text in said.err, len(said.err.splitlines())) == (2, True, 1)


@pytest.mark.slow("two runs wait for each other; test_two_runs_on_one_home_do_each_step_once has two, too")
def test_what_another_run_on_this_home_does_is_waited_for_and_taken(bench):
    first = Started(bench, "generator: slow")
    first.wait_for("started")
    (bench.folder / "started").unlink()
    second = Started(bench, "generator: slow", "--results", bench.folder / "others")
    time.sleep(3)
    assert (bench.calls().count("slow"), (bench.folder / "started").exists()) == (1, False)
    first.process.kill()
    first.end()
    second.wait_for("started")  # it takes over what the dead run had begun
    second.process.send_signal(signal.SIGINT)
    assert second.end()[0] == 130


def test_two_runs_on_one_home_do_each_step_once(bench):
    runs = [Started(bench, "seed: [0, 1, 2, 3]", "--results", bench.folder / name) for name in ("one", "other")]
    assert [run.end()[0] for run in runs] == [0, 0]
    calls = bench.calls()
    assert {call: calls.count(call) for call in calls if call.startswith(("generate", "quantize"))} == {
        f"{kind} {seed}": 1 for kind in ("generate", "quantize") for seed in range(4)
    }
    assert list((bench.home / "leases").iterdir()) == []


@pytest.mark.slow("it starts eight runs at once, and needs root")
@pytest.mark.timeout(300)
def test_eight_runs_on_four_machines_that_share_a_home_do_each_step_once(bench, monkeypatch):
    monkeypatch.setattr("runs.PATIENCE", 280)  # eight of them import torch
    if os.getuid() or shutil.which("unshare") is None:
        pytest.skip("only root may simulate machines, by unshare of util-linux")
    runs = [
        Started(bench, "seed: [0, 1, 2, 3]", "--results", bench.folder / f"results{number}", node=f"node{number % 4}")
        for number in range(8)
    ]
    assert [run.end()[0] for run in runs] == [0] * 8
    calls = bench.calls()
    assert {call: calls.count(call) for call in calls if call.startswith(("generate", "quantize"))} == {
        f"{kind} {seed}": 1 for kind in ("generate", "quantize") for seed in range(4)
    }
    tables = {(bench.folder / f"results{number}" / "toysuite.md").read_text() for number in range(8)}
    assert (len(tables), list((bench.home / "leases").iterdir())) == (1, [])


KILLED = """
import signal
class Killed(Toy):
    name = "killed"
    memory_options = ("images",)
    def generate(self, teacher, ctx):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_step_that_the_system_killed_says_which_options_need_memory(bench):
    bench.add_plugin(KILLED)
    bench.matrix("generator: killed")
    bench.run(workers=1)
    died = "the worker process died of signal 9 (SIGKILL); the system may have been out of memory"
    assert bench.row()["reason"] == f"generate: {died}: lower images (4)"


def test_a_step_of_which_nothing_is_heard_is_shown_once_a_minute(tmp_path, monkeypatch):
    loop, _ = loop_of(tmp_path, None)
    told, clock = [], [0.0]
    loop.run_.notify = lambda hook, step, progress: told.append((clock[0], hook, step.key, progress.note))
    monkeypatch.setattr("zsqbench.execution.loop.time.monotonic", lambda: clock[0])
    running, waiting = Future(), Future()
    running.set_running_or_notify_cancel()
    loop._running = {running: step("stuck"), waiting: step("waits")}
    for clock[0] in range(0, 200, 20):
        loop._show_progress()
    assert told == [
        (60, "step_progress", "stuck", "nothing heard for 1 min"),
        (120, "step_progress", "stuck", "nothing heard for 2 min"),
        (180, "step_progress", "stuck", "nothing heard for 3 min"),
    ]


def test_a_plugin_that_changes_during_a_run_fails_its_steps_and_the_last_line_offers_the_rerun(bench):
    bench.add_plugin("""
class Edits(Toy):
    name = "edits"
    def generate(self, teacher, ctx):
        with open(__file__, "a") as file:
            file.write("# edited\\n")
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: [edits, toy]")
    said = bench.run(workers=1)
    reason = f"plugin file {bench.folder / 'extra.py'} was changed during the run; run again"
    assert said.code == 1
    assert {row["reason"] for row in bench.rows().values()} == {f"quantize: {reason}", f"generate: {reason}"}
    assert said.err.splitlines()[-1] == f"warning: {reason}: `zsqbench run {bench.file}` does what is missing"


@pytest.mark.parametrize("running", [False, True])
def test_what_still_runs_where_an_error_ends_the_run_is_not_waited_for(tmp_path, running):
    loop, _ = loop_of(tmp_path, None)
    told = []
    loop._executor = SimpleNamespace(shutdown=lambda **options: told.append(options))
    loop._running = {object(): step("a")} if running else {}
    loop.close()
    assert told == [{"wait": not running, "cancel_futures": running}]
