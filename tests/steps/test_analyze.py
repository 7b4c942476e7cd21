import json
import shutil
from types import SimpleNamespace

import pytest
from faults import flip

from tests.conftest import BlankFigure
from zsqbench.reports.results import Result
from zsqbench.steps.analyze import Analyze
from zsqbench.store import NoArtifact, Store


@pytest.fixture
def analyzed(bench, monkeypatch):
    """A bench with one cell, whose tensors a run looks at. The picture is blank, which would take half a second."""
    monkeypatch.setattr("zsqbench.reports.tensorplot.layers_figure", lambda *_: BlankFigure())
    bench.matrix("quantizer: rtn", head="analyze: true")
    return bench


def show(bench, *arguments):
    return bench.zsqbench("show", bench.file, "", *bench.places(), *arguments)


def test_a_suite_that_asks_has_the_errors_of_all_quantized_tensors(analyzed):
    said = analyzed.run()
    found = analyzed.artifact("analyze")
    assert (said.code, found.manifest["label"]) == (0, "analyze a toy rtn hw/w4a4 seed 0")
    assert [tensor["name"] for tensor in found.content["tensors"]] == ["0", "2", "4", "4"]
    assert (found.content["images"], found.content["real"], found.content["ranked"]) == (4, 128, 4)
    assert set(found.manifest["files"]) == {"layers.png"}
    ranked = [tensor["alone"] for tensor in found.content["tensors"] if tensor["kind"] == "weight"]
    assert all(0 < error < 1 for error in ranked)
    text = show(analyzed).out
    assert "\nerror by tensor: 4 quantized; outputs: " in text
    layers = json.loads(show(analyzed, "--format", "json").out)["layers"]
    assert (layers["key"], layers["tensors"]) == (found.key, found.content["tensors"])


def test_its_key_begins_with_that_of_its_quantize_step_and_no_row_holds_it(analyzed):
    analyzed.run()
    assert analyzed.artifact("analyze").key[:32] == analyzed.row()["keys"]["quantize"][:32]
    assert "analyze" not in (analyzed.results / "toysuite.jsonl").read_text()


def test_asking_changes_no_row_no_definition_and_no_other_step(analyzed):
    analyzed.matrix("quantizer: rtn")
    analyzed.run()
    rows, plan = (analyzed.results / "toysuite.jsonl").read_bytes(), analyzed.plan()
    analyzed.calls()
    analyzed.matrix("quantizer: rtn, analyze: true")
    (step,) = analyzed.planned("analyze").values()
    assert step["state"] == "to do"
    others = [each for each in analyzed.plan()["steps"] if each["kind"] != "analyze"]
    assert [each["key"] for each in others] == [each["key"] for each in plan["steps"]]
    analyzed.run()
    assert (analyzed.results / "toysuite.jsonl").read_bytes() == rows
    assert "generate 0" not in analyzed.calls()
    assert len(analyzed.artifacts("analyze")) == 1


def test_show_layers_makes_what_a_run_makes(analyzed):
    analyzed.run()
    made = analyzed.artifact("analyze")
    shutil.rmtree(analyzed.home / "store" / "analyze")
    analyzed.matrix("quantizer: rtn")  # it need not ask
    assert "error by tensor" not in show(analyzed).out
    said = show(analyzed, "--layers")
    again = analyzed.artifact("analyze")
    assert (said.code, again.key, again.content) == (0, made.key, made.content), said.err
    assert again.manifest["label"] == made.manifest["label"]
    assert again.manifest["job"] == made.manifest["job"]
    assert "\nerror by tensor, on 4 calibration images and 128 real ones that are not evaluated\n" in said.out
    assert "\nthe 4 worst by their own rounding:\n 1. " in said.out
    analyzed.calls()
    assert (show(analyzed, "--layers").out, analyzed.calls()) == (said.out, [])


def test_evaluation_data_is_not_opened(analyzed):
    analyzed.run()
    shutil.rmtree(analyzed.home / "store" / "analyze")
    evaluation = analyzed.folder / "data" / "eval.txt"
    evaluation.unlink()
    evaluation.mkdir()  # so that whoever opens it fails
    analyzed.calls()
    said = show(analyzed, "--layers")
    assert (said.code, analyzed.calls()) == (0, ["load a"]), said.err


def test_where_there_are_no_other_images_or_no_set_that_is_said(analyzed):
    (analyzed.folder / "data" / "train.txt").unlink()
    analyzed.matrix("generator: none, quantizer: squant, scheme: hw/w4a32", head="analyze: true")
    analyzed.run()
    content = analyzed.artifact("analyze").content
    assert (content["images"], content["real"], content["ranked"]) == (None, None, None)
    assert content["absent"] == {
        "images": "the cell has no calibration images to measure errors and sensitivity on",
        "real": "task toytask has no images that it does not evaluate",
    }
    owns = [(tensor["kind"], tensor["own"] is None) for tensor in content["tensors"]]
    assert owns == [("weight", False)] * 2


def test_a_student_of_a_strangers_has_no_map_which_is_said(analyzed):
    analyzed.matrix("quantizer: toyq", head="analyze: true")
    analyzed.run()
    assert analyzed.artifact("analyze").content["tensors"] == []
    said = show(analyzed, "--layers")
    assert "\nerror by tensor: nothing was quantized, or the quantizer left no map of it\n" in said.out


def test_a_float_cell_is_not_analyzed(analyzed):
    analyzed.matrix("generator: none, quantizer: fp32, scheme: float", head="analyze: true")
    analyzed.run()
    assert analyzed.planned("analyze") == {}
    said = show(analyzed, "--layers")
    assert (said.code, said.err) == (
        2,
        "error: no tensor of toytask:a:none:fp32:float:- is quantized: its scheme is float\n",
    )


def test_layers_of_a_cell_that_is_not_here_or_not_done_say_what_to_do(analyzed):
    analyzed.run()
    shutil.rmtree(analyzed.home)
    said = show(analyzed, "--layers")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "is not in" in said.err
    assert "run the suite with an empty home to make it again" in said.err
    analyzed.add_plugin(
        "class Bad(ToyQuantizer):\n    name = 'bad'\n    def quantize(self, *all): raise OSError('oh')\n"
    )
    analyzed.matrix("quantizer: bad")
    analyzed.run()
    said = show(analyzed, "--layers")
    assert (said.code, "is failed: quantize: OSError: oh" in said.err) == (2, True)


def test_an_analysis_that_fails_is_a_warning_and_told(analyzed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("zsqbench.quant.measure_errors", lambda *_: 1 / 0)
        said = analyzed.run()
    assert (said.code, "warning: analyze a toy rtn hw/w4a4 seed 0 failed: " in said.err) == (0, True)
    assert analyzed.row()["status"] == "done"
    lines = show(analyzed).out.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("error by tensor: analyzing it failed: ")]
    assert "ZeroDivisionError: division by zero" in lines[place:]
    assert "absent" in json.loads(show(analyzed, "--format", "json").out)["layers"]


def test_a_damaged_analysis_is_told_and_layers_make_it_anew(analyzed):
    analyzed.run()
    flip(analyzed.artifacts("analyze")[0] / "layers.png")
    assert "\nerror by tensor: its analysis cannot be read: " in show(analyzed).out
    assert Analyze.track(Store(analyzed.home), Result(**analyzed.row())).unreadable
    said = show(analyzed, "--layers")
    assert (said.code, "\nthe 4 worst by their own rounding:\n" in said.out) == (0, True), said.err


def test_a_sensitivity_that_has_no_end_is_no_number_of_json(analyzed, monkeypatch):
    monkeypatch.setattr("zsqbench.quant.sensitivity._error", lambda *_: float("inf"))
    analyzed.run()
    weights = [tensor for tensor in analyzed.artifact("analyze").content["tensors"] if tensor["kind"] == "weight"]
    assert {tensor["alone"] for tensor in weights} == {None}
    assert {tensor["absent"]["alone"].split(":")[0] for tensor in weights} == {"infinite"}


def test_what_mlflow_is_told(analyzed):
    analyzed.run()
    row = Result(**analyzed.row())
    told = Analyze.track(Store(analyzed.home), row)
    assert {"sqnr/outputs", "sqnr/outputs_real", "sqnr/worst_weight", "sqnr/mean_activation"} <= told.numbers.keys()
    assert [path.name for path in told.files] == ["layers.png"]
    json.dumps(told.documents["layers.json"], allow_nan=False)
    shutil.rmtree(analyzed.home / "store" / "analyze")
    assert (Analyze.track(Store(analyzed.home), row), Analyze.is_expected(row)) == (None, True)


def test_gc_removes_it_with_its_quantized_network():
    key = Analyze.key_of("1" * 64, (SimpleNamespace(key="a" * 64),))
    assert Analyze.is_kept(key, frozenset({"a" * 64}))
    assert not Analyze.is_kept(key, frozenset({"b" * 64}))


def test_a_row_without_a_quantized_network_has_none(tmp_path):
    found = Analyze.find(Store(tmp_path), SimpleNamespace(keys={}))
    assert found == NoArtifact("this cell has no quantized network")
