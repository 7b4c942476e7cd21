import json
import shutil
from pathlib import Path

import pytest

ROWS = Path(__file__).resolve().parent.parent.parent / "results"
DGH, REAL = (f"{name} and rtn and resnet20 and hw/w4a4" for name in ("dgh", "real"))


@pytest.fixture
def ran(bench):
    """Two generators with three seeds."""
    bench.matrix("generator: [toy, toyreal], seed: [0, 1, 2]")
    assert bench.run().code == 0
    return bench


def compare(bench, *arguments):
    return bench.zsqbench("compare", bench.file, *arguments, *bench.places())


def committed(bench, *arguments):
    return bench.zsqbench("compare", "hw_friendly", *arguments, "--results", ROWS, "--home", bench.home)


def error(said):
    """The one line of what is refused."""
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    return line


def test_two_methods_of_a_suite_are_compared(ran):
    said = compare(ran, "toy:", "toyreal")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("toytask a hw/w4a4\n")
    assert "(20 images, seeds 0, 1, 2)" in said.out
    assert "classes that lose are not known: the task keeps no labels" in said.out


def test_json_has_p_and_what_flips_as_the_rows_say_it(ran):
    (found,) = json.loads(compare(ran, "toy:", "toyreal", "--format", "json").out)
    values = {cell.split(":")[2]: [] for cell in ran.rows()}
    for cell, row in ran.rows().items():
        values[cell.split(":")[2]].append(row["metrics"]["top1"])
    assert found["points"] == pytest.approx(sum(values["toyreal"]) / 3 - sum(values["toy"]) / 3)
    assert 0 < found["p"] <= 1
    assert found["low"] <= found["points"] <= found["high"]
    assert 5 * (found["wrong_to_right"] - found["right_to_wrong"]) / 3 == pytest.approx(found["points"])
    assert (found["scope"], found["seeds"], found["images"]) == ("over seeds", [0, 1, 2], 20)


def test_html_is_a_page(bench):
    said = committed(bench, DGH, REAL, "--format", "html")
    assert said.out.startswith("<!DOCTYPE html>")
    assert f"<title>hw_friendly: {DGH} (A), {REAL} (B)</title>" in said.out


def test_committed_rows_are_compared(bench):
    said = committed(bench, DGH, REAL)
    assert (said.code, said.err) == (0, "")
    assert "The difference cannot be told with 900 images; about 6,700 would be needed, for these seeds.\n" in said.out


def test_the_gate_holds_where_b_is_not_worse_by_the_margin(bench):
    said = committed(bench, DGH, REAL, "--margin", "0.5")
    assert (said.code, said.err) == (0, "")
    said = committed(bench, REAL, DGH, "--margin", "0.5")
    assert said.code == 1
    assert said.err.startswith("the gate fails at digits resnet20 hw/w4a4: B may be worse than A by 0.8")
    assert said.err.endswith("and the margin is 0.5\n")
    assert committed(bench, REAL, DGH).code == 0


def test_the_json_of_a_gate_that_fails_is_whole_and_says_so(bench):
    said = committed(bench, REAL, DGH, "--margin", "0.5", "--format", "json")
    assert said.code == 1
    assert [pair["passes"] for pair in json.loads(said.out)] == [False]


def test_classes_that_lose_are_those_of_the_labels_in_the_home_folder(bench):
    bench.add_plugin("""
class Labelled(ToyTask):
    name = "labelled"
    def evaluate(self, module, pretrained, ctx):
        found = super().evaluate(module, pretrained, ctx)
        return zsqbench.Evaluation(found.metrics, found.per_sample, labels=[7] * 10 + [8] * 10)
""")
    bench.matrix("task: labelled, quantizer: [toyq, far]", head="quantizers: {far: {method: toyq, shift: 100.0}}")
    assert bench.run().code == 0
    said = compare(bench, "toyq", "far", "--format", "json")
    (found,) = json.loads(said.out)
    assert found["no_classes"] is None
    net = found["wrong_to_right"] - found["right_to_wrong"]
    assert sum(each["points"] * each["images"] / 100 for each in found["classes"]) <= net
    assert {each["label"] for each in found["classes"]} <= {7, 8}
    shutil.rmtree(bench.home)
    (found,) = json.loads(compare(bench, "toyq", "far", "--format", "json").out)
    assert found["classes"] == []
    assert found["no_classes"].startswith("the labels of the images are not in ")


def test_rows_of_another_folder_are_compared_with_these(ran):
    other = ran.folder / "other"
    shutil.copytree(ran.results, other)
    said = compare(ran, "toyreal", "toyreal", "--other", other)
    assert said.code == 0, said.err
    assert "0 right to wrong, 0 wrong to right" in said.out
    assert "both select" in error(compare(ran, "toyreal", "toyreal", "--other", ran.results / "."))
    assert "there are no results of toysuite in" in error(compare(ran, "toy:", "toy:", "--other", ran.folder))


def test_a_row_that_artifacts_contradict_is_that_of_a_failed_cell(ran):
    file = ran.results / "toysuite.jsonl"
    first = next(iter(ran.rows().values()))["metrics"]["top1"]
    file.write_text(file.read_text().replace(f'"top1":{first}', f'"top1":{first + 5}', 1))
    said = compare(ran, "toy:", "toyreal")
    assert said.code == 2
    assert "is failed: its row was changed after it was measured" in said.err


def test_a_cell_that_failed_is_named_with_its_reason(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: [toy, bad]")
    bench.run()
    assert "B's cell toytask:a:bad:toyq:hw/w4a4:0 is failed: " in error(compare(bench, "toy:", "bad"))


def test_cells_that_have_not_run_are_named(ran):
    ran.matrix("generator: [toy, toyreal], seed: [0, 1, 2]", "generator: [toy, toyreal], quantizer: unseeded")
    assert error(compare(ran, "toy:toyq", "unseeded and toyreal")) == (
        "error: B selects 1 cell without a row: toytask:a:toyreal:unseeded:hw/w4a4:0; run the suite"
    )


def test_columns_that_are_left_out_are_told_beside_json(ran):
    ran.matrix("generator: [toy, toyreal], seed: [0, 1, 2]", "generator: toy, scheme: hw/w8a8")
    ran.run()
    said = compare(ran, "toy:", "toyreal", "--format", "json")
    assert (len(json.loads(said.out)), said.err) == (1, "not compared: toytask a hw/w8a8: only A selects it\n")
    assert "with a margin every column must be compared" in error(compare(ran, "toy:", "toyreal", "--margin", "5"))


def test_detectors_are_compared_without_flips(bench):
    said = committed(bench, "dgh and scenes and rtn", "real and scenes and rtn")
    assert (said.code, "B - A: " in said.out, "right to wrong" in said.out) == (0, True, False)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["dgh and scenes and rtn", "real and resnet20 and hw/w4a4 and rtn"], "A was measured by mAP, and B by top1"),
        ([DGH, "real and resnet20 and hw/w4a4"], "error: B selects 4 methods in digits resnet20 hw/w4a4, expected one"),
        ([DGH, "rael"], "error: none of 171 rows in"),
        ([DGH, "real and ("], "error: cannot read B 'real and ('"),
        ([DGH, DGH], "error: A and B both select digits:resnet20:dgh:rtn:hw/w4a4:0"),
        ([f"{DGH} and 4:0", f"{REAL} and 4:1"], "no common seeds: one has 0, the other 1"),
        ([DGH, REAL, "--margin", "0"], "error: a margin of 0 points; expected a number above 0"),
        ([DGH, REAL, "--margin", "-1"], "error: a margin of -1 points; expected a number above 0"),
    ],
)
def test_what_cannot_be_compared_is_one_line(bench, arguments, why):
    assert why in error(committed(bench, *arguments))
