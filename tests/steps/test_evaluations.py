import base64

import numpy as np
import pytest
from brief import parametrize_briefly

from zsqbench.steps.evaluations import read_samples

NO_NUMBER = """
class NoNumber(ToyTask):
    name = "nonumber"

    def evaluate(self, module, pretrained, ctx):
        call = (HERE / "calls.txt").read_text().count("evaluate")
        metrics = super().evaluate(module, pretrained, ctx).metrics
        return zsqbench.Evaluation(metrics | ({METRIC: float(VALUE)} if call == CALL else {}), [True])
"""
"""In one of its calls, this task measures what is no number."""


@pytest.mark.parametrize(("call", "step"), [(0, "baseline"), (1, "evaluate"), (2, "oracle")])
@parametrize_briefly("metric,value", [("top1", "nan"), ("loss", "inf"), ("top1", "-inf")], 1)
def test_a_metric_that_is_no_finite_number_fails_its_cell_and_leaves_no_artifact(bench, call, step, metric, value):
    source = NO_NUMBER.replace("CALL", str(call)).replace("METRIC", repr(metric)).replace("VALUE", repr(value))
    bench.add_plugin(source)
    bench.matrix("task: nonumber, quantizer: keeper")
    said, row = bench.run(), bench.row()
    reason = f"{step}: task nonumber measured {value} as {metric}; expected a finite number, as a table shows it"
    assert (said.code, row["status"], row["reason"], row.get("traceback")) == (1, "failed", reason, None)
    assert (bench.home / "store" / step).exists() is False


def test_a_task_that_does_not_measure_its_metric_fails_its_cells(bench):
    bench.add_plugin("""
class Forgets(ToyTask):
    name = "forgets"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top5": 50.0}, [True])
""")
    bench.matrix("task: forgets")
    bench.run()
    row = bench.row()
    assert (row["status"], "top1" in row.get("reason", "")) == ("failed", True)


def test_numbers_of_torch_and_numpy_are_numbers(bench):
    bench.add_plugin("""
class Tensors(ToyTask):
    name = "tensors"

    def evaluate(self, module, pretrained, ctx):
        import numpy, torch
        return zsqbench.Evaluation({"top1": torch.tensor(50.0), "top5": numpy.float32(60)}, torch.tensor([True, False]))
""")
    bench.matrix("task: tensors")
    bench.run()
    row = bench.row()
    assert row.get("metrics") == {"top1": 50.0, "top5": 60.0}, row.get("reason")


def test_which_samples_were_right_is_kept(bench):
    import numpy as np

    bench.matrix("")
    bench.run()
    baseline = bench.artifact("baseline")
    bits = np.unpackbits(read_samples(baseline)["correct"])[: baseline.content["samples"]]
    assert baseline.content["metrics"]["top1"] == 100 * bits.mean()


def test_a_row_holds_which_samples_were_right_as_packed_bits(bench):
    import numpy as np

    bench.matrix("")
    bench.run()
    row = bench.row()
    packed = np.frombuffer(base64.b64decode(row["correct"]), np.uint8)
    assert (len(packed), packed.tolist()) == (3, read_samples(bench.artifact("evaluate"))["correct"].tolist())
    assert row["metrics"]["top1"] == 100 * np.unpackbits(packed)[: row["data"]["evaluated"]].mean()


def test_an_artifact_says_on_which_data_it_was_measured(bench):
    digests = []
    bench.matrix("")
    for seed in ("7", "9"):
        bench.write("data/eval.txt", seed)
        bench.run_anew(seed)
        found = {bench.artifact(kind).content["data"] for kind in ("baseline", "evaluate")}
        digests.append(found | {bench.row()["data"]["digest"]})
    assert [len(found) for found in (*digests, digests[0] | digests[1])] == [1, 1, 2]


PREDICTS = """
class Predicts(ToyTask):
    name = "predicts"

    def evaluate(self, module, pretrained, ctx):
        evaluation = super().evaluate(module, pretrained, ctx)
        return zsqbench.Evaluation(evaluation.metrics, evaluation.per_sample, PREDICTIONS)
"""


@pytest.mark.parametrize(("top", "dtype"), [(9, "int16"), (40_000, "int32")])
def test_predictions_are_kept_as_small_integers(bench, top, dtype):
    bench.add_plugin(PREDICTS.replace("PREDICTIONS", f"[-1, {top}] * 10"))
    bench.matrix("task: predicts")
    bench.run()
    found = read_samples(bench.artifact("evaluate"))["predictions"]
    assert (found.tolist(), found.dtype) == ([-1, top] * 10, dtype)


@pytest.mark.parametrize("what", ["predictions", "labels", "difficulties"])
def test_as_many_values_as_samples_are_demanded(bench, what):
    bench.add_plugin(PREDICTS.replace("PREDICTIONS", f"{what}=[1, 0, 1]"))
    bench.matrix("task: predicts")
    bench.run()
    assert bench.row()["reason"] == f"baseline: task predicts gave 3 {what} of 20 samples"


@pytest.mark.parametrize("value", ["-0.1", "1.1", "float('nan')"])
def test_difficulties_are_from_0_to_1(bench, value):
    bench.add_plugin(PREDICTS.replace("PREDICTIONS", f"difficulties=[{value}] * 20"))
    bench.matrix("task: predicts")
    bench.run()
    expected = "baseline: task predicts gave difficulties outside 0 to 1: each must be one minus a probability"
    assert bench.row()["reason"] == expected


def test_a_task_without_predictions_leaves_no_file_of_them(bench):
    bench.matrix("")
    bench.run()
    assert list(read_samples(bench.artifact("evaluate"))) == ["correct"]


def test_the_baseline_alone_keeps_labels_and_difficulties_of_samples(bench):
    bench.add_plugin("""
class Tells(ToyTask):
    name = "tells"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0}, [True, False], [3, 4], [3, 7], [0.25, 1])
""")
    bench.matrix("task: tells")
    bench.run()
    full, quantized = (read_samples(bench.artifact(kind)) for kind in ("baseline", "evaluate"))
    assert {name: values.tolist() for name, values in full.items()} == {
        "correct": [128],
        "predictions": [3, 4],
        "labels": [3, 7],
        "difficulties": [0.25, 1.0],
    }
    assert sorted(quantized) == ["correct", "predictions"]


def test_what_a_task_keeps_of_its_own_has_names_of_its_own(bench):
    bench.add_plugin("""
class Own(ToyTask):
    name = "own"

    def evaluate(self, module, pretrained, ctx):
        import torch
        return zsqbench.Evaluation({"top1": 50.0}, [True], tensors={"correct": torch.ones(2)})
""")
    bench.matrix("task: own")
    bench.run()
    found = read_samples(bench.artifact("evaluate"))
    assert {name: values.tolist() for name, values in found.items()} == {"correct": [128], "task.correct": [1.0, 1.0]}


def test_a_task_that_tells_nothing_of_its_samples_leaves_no_file_of_them(bench):
    bench.add_plugin("""
class Silent(ToyTask):
    name = "silent"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0, "samples": 12}, [])
""")
    bench.matrix("task: silent")
    bench.run()
    assert (bench.artifact("evaluate").manifest["files"], bench.row()["data"]["evaluated"]) == ({}, 12)
    assert "correct" not in bench.row()


AGREES = """
class Predicts(ToyTask):
    name = "predicts"

    def evaluate(self, module, pretrained, ctx):
        first = not (HERE / "second").exists()
        (HERE / "second").touch()
        return zsqbench.Evaluation({"top1": 50.0}, [True] * 4, FLOAT if first else QUANTIZED)
"""


@pytest.mark.parametrize(
    ("full", "quantized", "agreement"),
    [
        ("[0, 1, 2, 3]", "[0, 1, 2, 2]", 75.0),
        ("[0, 1, 2, 3]", "[0, 1, 2, 3]", 100.0),
        ("[-1, 1, 2, 3]", "[-1, 1, 2, -1]", 50.0),
        ("[0, 1, 2, 3]", "[]", None),
        ("[]", "[0, 1, 2, 3]", None),
    ],
)
def test_a_row_says_on_how_many_samples_both_networks_agree(bench, full, quantized, agreement):
    bench.add_plugin(AGREES.replace("FLOAT", full).replace("QUANTIZED", quantized))
    bench.matrix("task: predicts")
    bench.run()
    (row,) = bench.rows().values()
    assert row["metrics"].get("agreement") == agreement
    assert "agreement" not in row["float_metrics"]


def test_predictions_of_other_samples_say_nothing_of_agreement(bench):
    bench.add_plugin(AGREES.replace("[True] * 4", "[]").replace("FLOAT", "[0, 1]").replace("QUANTIZED", "[0, 1, 2]"))
    bench.matrix("task: predicts")
    bench.run()
    (row,) = bench.rows().values()
    assert (row["status"], list(row["metrics"])) == ("done", ["top1"])


RESAMPLED = """
class Resampled(ToyTask):
    name = "resampled"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0, "samples": 12}, resampled=VALUES)
"""


def test_a_row_has_a_metric_on_resampled_samples(bench):
    bench.add_plugin(RESAMPLED.replace("VALUES", '{"top1": [float(each) for each in range(12)]}'))
    bench.matrix("task: resampled")
    bench.run()
    (row,) = bench.rows().values()
    values = np.frombuffer(base64.b64decode(row["resampled"]["top1"]), dtype="<f4")
    assert values.tolist() == [float(each) for each in range(12)]


@pytest.mark.parametrize("values", ['{"top1": [1.0]}', '{"other": [1.0] * 12}', '{"top1": [float("nan")] * 12}'])
def test_values_on_resampled_samples_that_mean_nothing_fail_the_cell(bench, values):
    bench.add_plugin(RESAMPLED.replace("VALUES", values))
    bench.matrix("task: resampled")
    bench.run()
    assert "on resampled samples; expected 12 finite ones of a metric" in bench.row()["reason"]
