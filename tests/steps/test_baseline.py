import pytest

FIXED_TASK = """
class Fixed(ToyTask):
    name = "fixed"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": MEASURED}, [True])
"""


@pytest.mark.parametrize(
    ("said", "measured", "status"),
    [("71.08", "71.08", "done"), ("71.08", "70.98", "done"), ("71.08", "71.1801", "failed"), ("71", "nan", "failed")],
)
def test_a_float_network_has_to_reach_what_the_suite_says(bench, said, measured, status):
    bench.add_plugin(FIXED_TASK.replace("MEASURED", f"float('{measured}')"))
    bench.matrix("task: fixed, model: mine", head=f"models: {{mine: {{base: a, float_accuracy: {said}}}}}")
    bench.run()
    assert bench.row()["status"] == status


def test_a_float_network_that_does_not_reach_it_fails_all_its_cells_and_no_other_in_one_line(bench):
    bench.add_plugin(FIXED_TASK.replace("MEASURED", "70.9"))
    models = "models: {mine: {base: a, float_accuracy: 71.08}, other: {base: b, float_accuracy: 70.9}}"
    bench.matrix("task: fixed, model: [mine, other], scheme: [hw/w4a4, hw/w8a8]", head=models)
    bench.run()
    bad, good = [[row for row in bench.rows().values() if row["model"] == name] for name in ("mine", "other")]
    expected = (
        "baseline: the float network mine reaches 70.900 % top1, and its float_accuracy is 71.08: "
        "check its weights, the evaluation data, and how images are resized, cropped and normalised"
    )
    assert [(row["status"], row["reason"], row.get("traceback")) for row in bad] == [("failed", expected, None)] * 2
    assert [row["status"] for row in good] == ["done"] * 2


def test_what_a_float_network_should_reach_is_in_no_key_of_what_is_made_of_it(bench):
    keys = []
    for said in ("", ", float_accuracy: 50", ", float_accuracy: 50.05"):
        bench.add_plugin(FIXED_TASK.replace("MEASURED", "50.0"))
        bench.matrix("task: fixed, model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        bench.run()
        row = bench.row()
        assert row["status"] == "done"
        keys.append([row["keys"][kind] for kind in ("generate", "quantize", "evaluate")])
    assert keys[0] == keys[1] == keys[2]


def test_what_a_float_network_should_reach_is_in_the_key_of_its_baseline_alone(bench):
    keys = []
    for said in ("", ", float_accuracy: 55", ", float_accuracy: 55.05"):
        bench.matrix("model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        bench.run()
        keys.append(next(iter(bench.rows().values()))["keys"])
    assert {kind for kind in keys[0] if len({key[kind] for key in keys}) > 1} == {"baseline"}


def test_nothing_is_made_of_a_network_that_does_not_reach_what_the_suite_says(bench):
    bench.matrix("model: [mine, a], seed: [0, 1]", head="models: {mine: {base: b, float_accuracy: 0.5}}")
    bench.run(workers=2)
    assert [row["status"] for row in bench.rows().values()] == ["failed"] * 2 + ["done"] * 2
    assert [len(bench.artifacts(kind)) for kind in ("generate", "quantize", "evaluate")] == [2, 2, 2]


def test_a_failed_cell_still_has_what_the_float_network_reached(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: bad")
    bench.run()
    (row,) = bench.rows().values()
    assert list(row["float_metrics"]) == ["top1"]


NOTING_TASK = """
class Noting(ToyTask):
    name = "noting"

    def evaluate(self, module, pretrained, ctx):
        ctx.note("the data is odd")
        return super().evaluate(module, pretrained, ctx)
"""


def test_what_the_task_noted_of_the_float_network_is_in_the_row_and_below_the_table_also_from_the_store(bench):
    bench.add_plugin(NOTING_TASK)
    bench.matrix("task: noting")
    for _ in range(2):
        said = bench.run()
        assert bench.row()["notes"] == ["the data is odd"]
        assert "- noting a: the data is odd" in said.out
        (bench.results / "toysuite.jsonl").unlink()


def test_a_row_of_which_nothing_was_noted_has_no_notes(bench):
    bench.matrix("")
    bench.run()
    assert "notes" not in bench.row()
