import json
import shutil

import pytest

from zsqbench.execution import engines


def plan_text(bench):
    return bench.zsqbench("plan", bench.file, "--no-plugin", "mlflow", *bench.places()).out.splitlines()


def test_a_plan_tells_cells_and_shared_steps(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    expected = [
        "toysuite: 2 cells",
        "  to do      toytask:a:toy:toyq:hw/w4a4:0",
        "  to do      toytask:a:toy:unseeded:hw/w4a4:0",
        "7 steps, shared by cells (without sharing: 10):",
        "  baseline  1 to do",
        "  generate  1 to do",
        "  diagnose  1 to do",
        "  quantize  2 to do",
        "  evaluate  2 to do",
        "pending: a has not been loaded yet, so its cached steps are not known",
        "time: unknown: no step like these 7 has run yet; see --probe",
    ]
    assert expected == plan_text(bench)


def test_a_plan_tells_what_is_done_and_what_is_to_do(bench):
    bench.matrix("seed: 0")
    bench.run()
    bench.matrix("seed: [0, 1]")
    lines = plan_text(bench)
    expected = ["  done       toytask:a:toy:toyq:hw/w4a4:0", "  to do      toytask:a:toy:toyq:hw/w4a4:1"]
    assert (expected, lines[-1].startswith("time: about ")) == (lines[1:3], True)
    assert lines[-1].endswith(" s on one worker for 4 steps")


def test_a_plan_tells_a_cell_whose_steps_are_cached_but_whose_row_is_not_there(bench):
    bench.matrix("")
    bench.run()
    shutil.rmtree(bench.results)
    assert plan_text(bench)[1] == "  cached     toytask:a:toy:toyq:hw/w4a4:0"


def test_a_plan_tells_why_a_cell_will_not_run(bench):
    bench.matrix("scheme: [hw/w4a4, float, hw/w8a8]", head="exclude: [{scheme: hw/w8a8, because: shown once}]")
    lines = plan_text(bench)
    assert lines[2].startswith("  impossible toytask:a:toy:toyq:float:0  (toyq rejects float: ")
    assert lines[3] == "  excluded   toytask:a:toy:toyq:hw/w8a8:0  (shown once)"


def test_a_plan_runs_nothing_and_writes_no_rows(bench):
    plan_text(bench)
    assert (bench.calls(), bench.results.exists()) == ([], False)


def test_a_plan_as_json_says_the_same(bench):
    plan = bench.plan("-k", "w4a4:1")
    cell = plan["cells"][0]
    assert (["toytask:a:toy:toyq:hw/w4a4:1"], ["a"], {*cell["steps"].values(), *cell["background"].values()}) == (
        [cell["cell"] for cell in plan["cells"]],
        plan["pending"],
        {step["key"] for step in plan["steps"]},
    )


def test_a_plan_needs_its_model_to_be_known(bench):
    bench.matrix("model: zzz")
    assert bench.error().endswith("unknown model 'zzz'; known: a, b, without_bn")


def test_a_budget_says_which_cells_fit(bench):
    bench.run()
    bench.matrix("seed: [0, 1, 2]")
    said = bench.zsqbench("plan", bench.file, "--budget", "1h30m", "--no-plugin", "mlflow", *bench.places()).out
    lines = said.splitlines()
    assert lines[3].startswith("  to do      toytask:a:toy:toyq:hw/w4a4:2  0 s, fits"), said
    assert lines[-1].startswith("budget: 3 of 3 cells fit into 90 min on "), said


def test_a_budget_without_estimates_fits_nothing_and_says_why(bench):
    said = bench.zsqbench("plan", bench.file, "--budget", "90", "--workers", 1, *bench.places()).out
    assert "budget: 0 of 2 cells fit into 90 s on 1 worker" in said
    assert "2 do not fit because the time of their steps is unknown: see --probe" in said


def test_a_budget_hints_at_an_expression_for_the_cells_that_fit(bench):
    bench.run()
    bench.matrix("model: [a, b], seed: 0")  # nothing is known of b
    said = bench.zsqbench("plan", bench.file, "--budget", "1m", "--no-plugin", "mlflow", *bench.places()).out
    assert said.splitlines()[-1] == f'  to run these alone: zsqbench run {bench.file} -k "not b"'


def test_a_plan_as_json_has_seconds_for_each_cell(bench):
    bench.run()
    bench.matrix("seed: [0, 1, 2]")
    plan = bench.plan("--budget", "2h", "--workers", "3")
    assert (plan["workers"], plan["budget"], plan["time"]["unknown_steps"]) == (3, 7200.0, 0)
    assert [(cell["seconds"] >= 0, cell["fits"]) for cell in plan["cells"]] == [(True, True)] * 3
    assert [cell["fits"] for cell in bench.plan()["cells"]] == [None] * 3


@pytest.mark.parametrize("text", ["soon", "0", "-5", "-1h", "0s", ""])
def test_a_budget_that_is_no_time_is_refused(bench, text):
    said = bench.zsqbench("plan", bench.file, "--budget", text, *bench.places())
    expected = "expected 90s, 20m, 1h30m, or a number of seconds"
    assert (said.code, said.err) == (2, f"error: budget {text!r} is not a duration; {expected}\n")


def test_a_plan_says_what_compiling_would_save_where_it_would(bench, monkeypatch):
    monkeypatch.setattr(engines, "gpus", list)
    bench.add_plugin('class Compiles(Toy):\n    name = "compiles"\n    compiles = "pixels"\n')
    bench.matrix("generator: compiles, seed: 0")
    bench.run()
    bench.matrix("generator: compiles, seed: 1")
    found = bench.plan()["compiling"]
    assert (found["steps"], found["measured"], found["seconds"] < 0) == (1, 0, True)
    assert not any("compiling" in line for line in plan_text(bench))
    timings = [json.loads(line) for line in (bench.home / "timings.jsonl").read_text().splitlines()]
    long = [[key, 1e4, *rest] for key, _, *rest in timings]
    (bench.home / "timings.jsonl").write_text("\n".join(map(json.dumps, long)))
    start = "compiling: compile: true, layout: channels_last would save about "
    assert [line for line in plan_text(bench) if line.startswith(start)]
