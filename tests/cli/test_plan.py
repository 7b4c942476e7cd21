import shutil


def plan_text(bench):
    return bench.zsqbench("plan", bench.file, "--no-plugin", "mlflow", *bench.places()).out.splitlines()


def test_a_plan_tells_cells_and_shared_steps(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    expected = [
        "toysuite: 2 cells",
        "  to do      toytask:a:toy:toyq:hw/w4a4:0",
        "  to do      toytask:a:toy:unseeded:hw/w4a4:0",
        "7 steps, where the cells one by one would take 10:",
        "  baseline  1 to do",
        "  generate  1 to do",
        "  diagnose  1 to do",
        "  quantize  2 to do",
        "  evaluate  2 to do",
        "pending: a has not been loaded yet, so nothing of it is known to be cached",
        "time: unknown: no step like these 7 has run yet",
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
