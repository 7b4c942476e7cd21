import json

import pytest
from faults import rewrite_manifest

from zsqbench.execution import probing
from zsqbench.execution.engines import InProcess

SLOW = """
import time

class Slow(Toy):
    name = "slow"
    iterations: int = 1000

    def generate(self, teacher, ctx):
        time.sleep(0.01 * self.iterations)
        note(f"made {self.images} in {self.iterations}")
        return super().generate(teacher, ctx)
"""
NO_IMAGES = """
class Broken(Toy):
    name = "broken"

    def generate(self, teacher, ctx):
        raise RuntimeError("no images")
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Let what takes milliseconds stand out."""
    monkeypatch.setattr(probing, "STANDS_OUT", 0.02)


def probe(bench, *arguments):
    return bench.zsqbench(
        "plan", bench.file, "--probe", "--workers", 0, "--no-plugin", "mlflow", *bench.places(), *arguments
    )


def timings(bench):
    return [json.loads(line) for line in (bench.home / "timings.jsonl").read_text().splitlines()]


def test_a_probed_suite_has_an_estimate_for_each_step(bench):
    said = probe(bench)
    assert "probed 5 kinds of steps in " in said.err, said
    steps = bench.plan()["steps"]
    assert {step["kind"]: step["basis"] for step in steps} == dict.fromkeys(
        ["baseline", "generate", "diagnose", "quantize", "evaluate"], "probed"
    )


def test_probing_leaves_facts_of_networks_and_rates_alone(bench):
    probe(bench)
    assert {path.name for path in (bench.home / "store").iterdir()} == {"resolve"}
    assert not bench.results.exists()
    assert {line[0] for line in timings(bench)} == {""}


def test_a_shortened_step_is_scaled_to_the_whole(bench):
    bench.add_plugin(SLOW)
    bench.matrix("generator: slow")
    probe(bench)
    (step,) = [step for step in bench.plan()["steps"] if step["kind"] == "generate"]
    assert 4 < step["seconds"] < 40  # 10, where nothing else runs
    assert [call for call in bench.calls() if call.startswith("made")][:2] == ["made 4 in 2", "made 4 in 6"]


def test_what_is_known_is_not_probed_again(bench):
    probe(bench)
    before = timings(bench)
    assert "probed 0 kinds of steps" in probe(bench).err
    assert timings(bench) == before


def test_a_run_says_what_it_may_take(bench):
    probe(bench)
    assert "steps to do, about 0 s on one worker for 9 steps: 0 s from probes (9)" in bench.run().err


def test_evaluation_data_is_read_by_evaluation_alone(bench):
    probe(bench)
    calls = bench.calls()
    assert calls.count("evaluate") == 2  # the float network and one student


def test_a_network_that_does_not_load_is_told_and_the_others_are_probed(bench):
    bench.add_plugin("""
class Picky(ToyTask):
    name = "picky"

    def load(self, model, ctx):
        if model.base == "b":
            raise ValueError("no weights here")
        return super().load(model, ctx)
""")
    bench.matrix("task: picky, model: [a, b]")
    said = probe(bench)
    assert (said.code, "warning: cannot probe resolve b: ValueError: no weights here" in said.err) == (0, True), said
    assert "pending: b has not been loaded yet" in said.out
    assert "probed 5 kinds" in said.err


def test_a_method_that_fails_is_told_once_with_what_needs_it(bench):
    bench.add_plugin(NO_IMAGES)
    bench.matrix("generator: broken")
    said = probe(bench)
    assert "warning: cannot probe generate a broken seed 0: RuntimeError: no images" in said.err, said
    assert "cannot probe quantize a broken toyq hw/w4a4 seed 0: it needs generate a broken seed 0" in said.err
    assert "unknown for" in said.out


def test_an_interrupted_probe_keeps_what_it_learnt(bench, monkeypatch):
    kept = probing._Probing._make

    def make(self, step, length):
        if step.kind == "evaluate":
            raise KeyboardInterrupt
        return kept(self, step, length)

    monkeypatch.setattr(probing._Probing, "_make", make)
    said = probe(bench)
    assert (said.code, said.err.splitlines()[-1]) == (130, "interrupted")
    assert {line[2]["kind"] for line in timings(bench)} >= {"generate", "quantize"}


def test_facts_of_an_older_version_are_completed(bench):
    bench.matrix("")
    bench.run()
    resolved = bench.artifact("resolve")
    rewrite_manifest(resolved.folder, content={k: v for k, v in resolved.content.items() if k != "operations"})
    probe(bench)
    assert bench.artifact("resolve").content == resolved.content


def test_no_time_probes_nothing(bench):
    said = probe(bench, "--probe-time", "0.000001")
    assert "probed 0 kinds of steps in 0 s; there was no time for 5 more, see --probe-time" in said.err


class Never:
    """A job's future that does not end."""

    def submit(self, *_):
        """Hand it out."""
        from concurrent.futures import Future

        return Future()

    def shutdown(self, **_):
        """Nothing runs."""


def test_a_probe_that_takes_too_long_is_extrapolated_by_its_progress(bench, monkeypatch, tmp_path):
    from zsqbench.execution.session import WorkerConfig
    from zsqbench.steps import Progress

    class Job:
        key = "k"

    monkeypatch.setattr(InProcess, "start", lambda _: Never())
    monkeypatch.setattr(probing, "read_progress", lambda *_: Progress(10, 100))
    runner = probing._Runner(InProcess(), WorkerConfig(tmp_path))
    outcome = runner.run(runner.scratch, Job(), 0.01)
    assert (outcome.status, outcome.seconds > 0.1) == ("interrupted", True)
