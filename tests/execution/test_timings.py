from brief import parametrize_briefly

import zsqbench
from zsqbench.execution.timings import Timings


def test_a_plan_of_one_more_seed_estimates_the_time_from_the_others(bench):
    bench.run()
    bench.matrix("seed: [0, 1, 2]")
    to_do = [step for step in bench.plan()["steps"] if step["state"] == "to do"]
    assert {step["kind"]: step["seconds"] is not None for step in to_do} == {
        "generate": True,
        "quantize": True,
        "evaluate": True,
        "diagnose": True,
    }


def test_a_plan_of_another_option_scales_the_time(bench):
    bench.run()
    bench.matrix("generator: more", head="generators: {more: {method: toy, images: 5}}")
    to_do = [(step["seconds"] is None, step["basis"]) for step in bench.plan()["steps"] if step["state"] == "to do"]
    assert to_do == [(False, "scaled")] * 4


def test_the_estimate_is_the_median_of_steps_that_differ_in_seed_alone(bench, tmp_path):
    plan = zsqbench.plan(bench.file, home=tmp_path, results=bench.results)
    first, second = [step for step in plan.steps.values() if step.kind == "generate"]
    for seconds in (1.0, 2.0, 9.0):
        Timings(plan.store).add(first, seconds)
    assert Timings(plan.store).estimate(second) == 2.0


DAMAGED = [
    b'["key", 1.',
    b"5",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"\0",
    b'["key"]',
    b'["key", 1, 2]',
    b'["key", 1, {}]',
    b'["key", 1, {"kind": "quantize", "method": "m", "network": 3, "images": 1, "operations": 1}]',
    b'["key", 1, {"kind": "quantize", "method": "m", "network": "n", "images": 1, "operations": -1}]',
    b'["key", 1, {"kind": "quantize", "method": "m", "network": "n", "images": 1, "operations": 1}, 2]',
    b'[["key"], 1]',
    b'["key", [1]]',
    b'["key", "1"]',
    b'["key", true]',
    b'["key", null]',
    b'["key", -1]',
    b'["key", NaN]',
    b'["key", Infinity]',
    b'["key", 1e999]',
    b'["key", 1' + b"0" * 400 + b"]",
    b'{"key": 1, "other": 2}',
    b"[" * 100_000,
]


@parametrize_briefly("damage", DAMAGED, 8)
def test_a_damaged_line_of_the_timings_is_left_out(tmp_path, bench, damage, caplog):
    plan = zsqbench.plan(bench.file, home=tmp_path, results=bench.results)
    step = next(iter(plan.steps.values()))
    (tmp_path / "timings.jsonl").write_bytes(damage.replace(b"key", step.timing_key.encode()) + b"\n")
    Timings(plan.store).add(step, 3.0)
    assert Timings(plan.store).estimate(step) == 3.0
    (warning,) = caplog.messages
    assert warning.startswith("estimates ignore 1 invalid line of ")


def test_damaged_lines_of_the_timings_are_counted_once_where_times_are_estimated(bench, caplog):
    bench.run()
    with (bench.home / "timings.jsonl").open("ab") as file:
        file.write(b"\n".join(DAMAGED))
    bench.run()
    assert caplog.messages == []
    bench.matrix("seed: [0, 1, 2]")
    said = bench.zsqbench("plan", bench.file, *bench.places())
    assert (said.code, "about 0 s on one worker for 4 steps" in said.out) == (0, True), said.err
    (warning,) = caplog.messages
    assert f"ignore {len(DAMAGED)} invalid lines of {bench.home / 'timings.jsonl'}" in warning


def test_times_that_cannot_be_read_are_one_warning(bench, caplog):
    bench.run()
    (bench.home / "timings.jsonl").unlink()
    (bench.home / "timings.jsonl").mkdir()
    bench.matrix("seed: [0, 1, 2]")
    said = bench.zsqbench("plan", bench.file, *bench.places())
    (warning,) = caplog.messages
    assert (said.code, "nothing is estimated: cannot read" in warning) == (0, True), said.err


def test_times_that_cannot_be_kept_stop_no_run(bench):
    (bench.home / "timings.jsonl").mkdir(parents=True)
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (0, ["done", "done"]), said.err
