import shutil
from types import SimpleNamespace

from faults import flip

import zsqbench
from zsqbench.reports.results import Result
from zsqbench.steps.diagnose import Diagnose
from zsqbench.store import NoArtifact, Store


def breaks(monkeypatch, error=ZeroDivisionError):
    def diagnose(*_):
        raise error

    monkeypatch.setattr("zsqbench.synthesis.diagnose", diagnose)


def test_a_calibration_set_has_diagnostics_and_pictures(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run()
    found = bench.artifact("diagnose")
    assert {path.name for path in found.folder.iterdir()} == {"manifest.json", "diagnostics.png", "images.png"}
    assert (found.content["set"]["images"], found.content["real"]["images"]) == (4, 4)
    assert found.manifest["label"] == "diagnose a toy seed 0"


ATTENDING = """
class Attending(ToyTask):
    name = 'attending'
    def load(self, model, ctx):
        from zsqbench.testing import tiny_transformer
        return tiny_transformer()
"""


def test_a_transformer_has_a_picture_of_its_attention(bench):
    bench.add_plugin(ATTENDING)
    bench.matrix("task: attending, quantizer: rtn")
    assert bench.run().code == 0
    found = bench.artifact("diagnose")
    assert (found.folder / "attention.png").is_file()
    assert found.content["real"]["attention_maps"] == {"by": "class token", "grid": [4, 4]}
    assert len(found.content["set"]["patch_similarities"]) == 2
    said = bench.zsqbench("show", bench.file, "rtn", *bench.places())
    pictures = [line.rpartition("/")[2] for line in said.out.splitlines() if line.endswith(".png")]
    assert pictures == ["images.png", "attention.png", "diagnostics.png"]
    tracked = Diagnose.track(Store(bench.home), Result.model_validate(bench.row()))
    assert [path.name for path in tracked.files] == ["diagnostics.png", "images.png", "attention.png"]
    assert "calibration/patch_entropy_real" in tracked.numbers


def test_a_network_with_neither_batch_normalisation_nor_attention_has_no_such_picture(bench):
    bench.matrix("model: without_bn")
    bench.run()
    found = bench.artifact("diagnose")
    assert not (found.folder / "attention.png").exists()
    assert found.content["feature_distance"]["layer"] == "4"
    reasons = [found.content["set"]["absent"][name] for name in ("bn_gaps", "patch_similarities", "attention_maps")]
    assert ["has no batch normalisation" in reasons[0], *("needs attention" in each for each in reasons[1:])] == [
        True
    ] * 3


def test_a_task_without_other_images_than_it_evaluates_has_none_to_compare_with(bench):
    (bench.folder / "data" / "train.txt").unlink()
    bench.matrix("")
    bench.run()
    data = bench.artifact("diagnose").content
    assert (data["real"], data["absent"]["real"]) == (None, "task toytask has no images that it does not evaluate")


def test_diagnostics_that_fail_fail_no_cell_and_are_tried_again(bench, monkeypatch):
    with monkeypatch.context() as patch:
        breaks(patch)
        first = bench.run()
    assert (first.code, list(bench.statuses().values())) == (0, ["done", "done"])
    assert "; so did 1 others; results do not depend on it\n" in first.err
    rows = (bench.results / "toysuite.jsonl").read_bytes()
    second = bench.run()
    assert (second.code, len(bench.artifacts("diagnose")), "warning" in second.err) == (0, 2, False)
    assert rows == (bench.results / "toysuite.jsonl").read_bytes()
    assert not list((bench.home / "partial").iterdir())


def test_diagnostics_are_in_no_row(bench):
    bench.run()
    assert "diagnose" not in (bench.results / "toysuite.jsonl").read_text()


def test_a_set_that_could_not_be_made_is_not_said_to_lack_diagnostics(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: bad")
    assert "warning" not in bench.run().err


def test_an_interruption_while_diagnosing_keeps_the_cells_and_the_next_run_goes_on(bench, monkeypatch):
    with monkeypatch.context() as patch:
        breaks(patch, KeyboardInterrupt)
        first = bench.run()
    assert (first.code, list(bench.statuses().values())) == (130, ["done", "done"])
    bench.calls()
    assert (bench.run().code, len(bench.artifacts("diagnose")), bench.calls()) == (0, 2, ["load a"])


def test_a_damaged_set_is_not_made_again_for_its_diagnostics(bench):
    bench.matrix("")
    bench.run()
    flip(bench.artifacts("generate")[0] / "calibration.safetensors")
    (folder,) = bench.artifacts("diagnose")
    folder.rename(bench.folder / "aside")
    bench.calls()
    said = bench.run()
    assert (said.code, bench.calls(), "warning: diagnose a toy seed 0 failed" in said.err) == (0, [], True)


def test_diagnostics_of_a_damaged_set_wait_for_the_new_one(bench):
    bench.matrix("")
    bench.run()
    flip(bench.artifacts("generate")[0] / "calibration.safetensors")
    for kind in ("diagnose", "quantize", "evaluate"):
        bench.artifacts(kind)[0].rename(bench.folder / kind)
    said = bench.run()
    assert (said.code, len(bench.artifacts("diagnose")), "warning" in said.err) == (0, 1, False)


def test_cells_come_before_diagnostics(bench):
    bench.matrix("seed: [0, 1]", "seed: [0, 1], quantizer: unseeded")
    steps = [line.split("] ")[1].split()[0] for line in bench.run().err.splitlines() if line.startswith("[")]
    assert steps[-2:] == ["diagnose", "diagnose"]
    assert steps.count("diagnose") == 2


def test_a_set_is_diagnosed_once_however_many_cells_use_it(bench):
    bench.matrix("quantizer: [toyq, unseeded], scheme: [hw/w4a4, hw/w8a8]")
    assert list(bench.planned("diagnose")) == ["diagnose a toy seed 0"]


def test_a_cell_without_a_set_has_no_diagnostics(bench):
    bench.matrix("generator: none, quantizer: datafree")
    assert bench.planned("diagnose") == {}


def test_no_set_is_made_for_its_diagnostics_alone(bench):
    bench.run()
    for kind in ("generate", "diagnose"):
        shutil.rmtree(bench.artifacts(kind)[0])
    states = sorted(step["state"] for step in bench.planned("diagnose").values())
    assert (len(bench.artifacts("generate")), states) == (1, ["cached", "not needed"])
    assert bench.run().code == 0
    assert len(bench.artifacts("generate")) == 1


def test_what_only_diagnostics_are_missing_of_is_diagnosed_by_the_next_run(bench):
    bench.run()
    shutil.rmtree(bench.home / "store" / "diagnose")
    bench.calls()
    bench.run()
    assert (len(bench.artifacts("diagnose")), bench.calls()) == (2, ["load a"])


def test_diagnostics_come_last(bench):
    bench.matrix("quantizer: [toyq, unseeded], seed: [0, 1]")
    plan = zsqbench.plan(bench.file, home=bench.home, results=bench.results)
    assert [step.kind == "diagnose" for step in plan.to_do().values()] == [False] * 11 + [True] * 2


SET = "a" * 64


def row(task="classification", **changes):
    fields = dict.fromkeys(("suite", "cell", "definition", "task", "model", "quantizer", "scheme"), "x")
    methods = {"task": {"method": task, "options": {}}}
    fields |= {"generator": "g", "seed": 0, "status": "done", "keys": {"generate": SET}, "methods": methods}
    return Result(**fields | changes)


def write(store, identity, task="classification", version="1"):
    """Diagnostics of the set that say how they are called."""
    key = Diagnose.key_of(identity * 64, (SimpleNamespace(key=SET),))
    job = {"task": {"method": task, "options": {}}}
    store.write("diagnose", key, {"job": job, "content": {"version": version, "called": identity}})
    return key


def test_diagnostics_are_those_of_the_rows_own_task(tmp_path):
    store = Store(tmp_path)
    for identity, task in (("1", "other"), ("2", "classification"), ("3", "another")):
        write(store, identity, task)
    assert Diagnose.find(store, row()).data["called"] == "2"


def test_diagnostics_are_the_newest(tmp_path):
    store = Store(tmp_path)
    for identity, version in (("1", "9"), ("2", "10"), ("3", "2")):
        write(store, identity, version=version)
    assert Diagnose.find(store, row()).data["called"] == "2"


def test_diagnostics_of_another_set_are_not_taken(tmp_path):
    store = Store(tmp_path)
    store.write("diagnose", "b" * 64, {"content": {}})
    found = Diagnose.find(store, row())
    assert isinstance(found, NoArtifact)
    assert found.why.startswith("no diagnostics in ")


def test_diagnostics_are_kept_as_long_as_their_set(tmp_path):
    key = write(Store(tmp_path), "1")
    assert Diagnose.is_kept(key, frozenset({SET}))
    assert not Diagnose.is_kept(key, frozenset({"b" * 64}))


def test_diagnostics_are_expected_of_a_row_that_has_a_set():
    assert [Diagnose.is_expected(row(keys=keys)) for keys in ({"generate": SET}, {"quantize": SET})] == [True, False]
