import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from faults import flip, rewrite_manifest

import zsqbench
from zsqbench.execution.loop import Loop
from zsqbench.leases import Leases
from zsqbench.methods import Engine, Settings
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


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        *((damage_another_schema, kind) for kind in KINDS),
        *((damage_a_byte_of_the_manifest, kind) for kind in KINDS),
        *((damage_a_byte_of_its_file, kind) for kind in FILES),
    ],
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


@pytest.mark.parametrize("kind", KINDS)
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
        return self._outcomes.get(name, Outcome("done"))


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
    bench.run_anew("here")
    (here,) = bench.rows().values()
    bench.run_anew("pool", workers=1)
    (pool,) = bench.rows().values()
    assert [here[name] for name in ("keys", "metrics", "definition")] == [
        pool[name] for name in ("keys", "metrics", "definition")
    ]


def test_control_c_ends_the_pool_at_once_with_valid_rows(bench):
    bench.add_plugin("""
import time
class Slow(Toy):
    name = "slow"
    def generate(self, teacher, ctx):
        (HERE / "started").touch()
        time.sleep(60)
""")
    bench.matrix("generator: [toy, slow]")
    bench.write(
        "start.py",
        """
        import signal, sys
        from zsqbench.cli import main
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it as ignored
            main(sys.argv[1:])
        """,
    )
    arguments = ["run", bench.file, "--workers", 1, "--no-plugin", "mlflow", *bench.places()]
    process = subprocess.Popen(
        [sys.executable, bench.folder / "start.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(zsqbench.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 80
    while not (bench.folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (bench.folder / "started").exists(), out + err
    assert process.returncode == 130, out + err
    assert list(bench.statuses().values()) == ["done", "interrupted"], out + err
