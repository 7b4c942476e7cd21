"""Cells that a suite exports: steps, rows, keys and what is left out, with a toy task and a real quantizer."""

import json

import onnx_ir as ir
import pytest

import zsqbench.export
from zsqbench.export import NEEDED

BLOCK = "  - {task: seen, model: a, generator: toy, quantizer: QUANTIZER, scheme: SCHEME, seed: [0]MORE}\n"

TASK = """
class Seen(ToyTask):
    name = "seen"
    def evaluate(self, module, pretrained, ctx):
        found = super().evaluate(module, pretrained, ctx)
        predicted = module(self.images(self.samples, "eval.txt", ctx)).argmax(1).tolist()
        return zsqbench.Evaluation(found.metrics, found.per_sample, predicted)
"""
OPTIONS = "export: {check: 8, batch_sizes: [1, 2]}\n"
KINDS = {"export", "export_float", "onnxruntime", "latency"}
MISSING = "not run: onnxruntime is not installed: pip install 'zsqbench[onnx]'"


def block(quantizer="rtn", scheme="qdq/w8a8", more=""):
    return BLOCK.replace("QUANTIZER", quantizer).replace("SCHEME", scheme).replace("MORE", more and f", {more}")


def suite(bench, *blocks, head=OPTIONS):
    bench.add_plugin(TASK)
    return bench.suite(f"name: toysuite\nplugins: [toy.py, extra.py]\n{head}matrix:\n{''.join(blocks or [block()])}")


def without_runtime(monkeypatch):
    """As where the extra is not installed."""
    real = zsqbench.export.importlib.util.find_spec
    monkeypatch.setattr(
        zsqbench.export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )


def kinds(bench, *arguments):
    """How many steps of each kind are planned."""
    found = [step["kind"] for step in bench.plan(*arguments)["steps"]]
    return {kind: found.count(kind) for kind in set(found)}


def test_a_cell_is_written_checked_and_timed_and_its_row_says_so(bench):
    suite(bench)
    said = bench.run()
    assert said.code == 0, said.out + said.err
    row = bench.row()
    metrics = {
        name.partition("/")[2]: value for name, value in row["metrics"].items() if name.startswith("onnxruntime/")
    }
    times = {
        f"{start}{name}" for start in ("", "float_") for name in ("p50_ms", "p95_ms", "p50_ms_batch2", "p95_ms_batch2")
    }
    assert metrics.keys() == {"top1", "equal", "equal_exact", "integer_layers", "layers", "size_mb", *times}
    assert (metrics["layers"], metrics["integer_layers"], metrics["equal_exact"]) == (2, 2, 100)
    assert metrics["equal"] == 100
    assert metrics["top1"] == row["metrics"]["top1"]
    assert all(metrics[name] > 0 for name in times)
    assert row["keys"].keys() >= KINDS
    folder = bench.artifact("export").folder
    assert metrics["size_mb"] == (folder / "model.onnx").stat().st_size / 1e6
    assert {file.name for file in folder.iterdir()} == {"manifest.json", "model.onnx", "model.py"}
    metadata = ir.load(folder / "model.onnx").metadata_props
    assert (
        json.loads(metadata["zsqbench.origin"]) == {"cell": "export a toy rtn qdq/w8a8 seed 0"} or row["seed"] is None
    )
    # nothing is done twice
    assert "0 steps to do" in bench.run().err
    # people see the comparison, and times, and where the file is
    said = bench.zsqbench("show", bench.file, "rtn", *bench.places())
    assert "2 of 2 layers run with integers" in said.out
    assert "batch size 2, one thread: " in said.out
    assert f"{folder / 'model.onnx'} (run model.py beside it on an image)" in said.out
    shown = json.loads(bench.zsqbench("show", bench.file, "rtn", "--format", "json", *bench.places()).out)
    assert shown["onnxruntime"]["check"]["images"] == 8
    assert shown["latency"]["times"].keys() == {"1", "2"}
    # a table has them beside the results
    said = bench.zsqbench(
        "leaderboard", bench.file, "--results", bench.results, "--columns", "onnxruntime/top1,onnxruntime/p50_ms"
    )
    assert "onnxruntime/top1" in said.out, said.err
    # what was measured in the runtime is measured on the machine, so the cell counts as done with these artifacts only
    said = bench.run("--set", "export.check=9")
    assert said.code == 0
    assert "1 steps to do" in said.err.replace("step to do", "steps to do"), said.err


def test_without_the_extra_the_cell_runs_and_says_what_did_not(bench, monkeypatch):
    without_runtime(monkeypatch)
    suite(bench)
    assert KINDS.isdisjoint(kinds(bench))
    said = bench.run()
    assert said.code == 0, said.out + said.err
    row = bench.row()
    assert (row["status"], row["not_run"]) == ("done", {"onnxruntime": MISSING})
    assert f"- onnxruntime/...: {MISSING}\n" in said.out
    said = bench.zsqbench("leaderboard", bench.file, "--results", bench.results, "--columns", "onnxruntime/top1")
    assert (said.code, said.out.count(MISSING)) == (0, 2)  # of the column, and of the suite
    monkeypatch.undo()
    assert kinds(bench).keys() >= KINDS


def test_blocks_ask_for_themselves_and_a_cell_of_two_blocks_is_exported_once(bench):
    suite(bench, block(), block("rtn", "[qdq/w8a8, pot/w8a8]", "export: {check: 8}"), head="")
    found = kinds(bench)
    assert (found["quantize"], found["export"], found["onnxruntime"], found["latency"], found["export_float"]) == (
        2,
        2,
        2,
        2,
        1,
    )
    suite(bench, block(), block("rtn", "pot/w8a8", "export: {check: 8}"), head="")
    assert kinds(bench)["export"] == 1
    suite(bench, block(), block("rtn", "pot/w8a8", "export: {check: 8}"))
    assert kinds(bench)["export"] == 2


def test_float_networks_are_left_out(bench):
    suite(
        bench,
        BLOCK.replace("toy,", "none,").replace("QUANTIZER", "fp32").replace("SCHEME", "float").replace("MORE", ""),
    )
    assert KINDS.isdisjoint(kinds(bench))


def test_an_export_changes_the_cell_and_no_key_of_a_step_before_it(bench):
    def keys():
        return {step["kind"]: step["key"] for step in bench.plan()["steps"] if step["kind"] not in KINDS}

    suite(bench, head="")
    assert bench.run().code == 0  # before, what networks are is provisional
    plain, before = keys(), bench.row()
    suite(bench)
    assert keys() == plain
    assert before["definition"] != definition(bench)


def definition(bench):
    from zsqbench.suite import load_suite

    loaded = load_suite(bench.file, [], [], [], None, None)
    (cell,) = loaded.selected
    return loaded.definition(cell)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("export.check=9", {"onnxruntime"}),
        ("export.batch_sizes=[1]", {"latency"}),
        ("export.input=uint8", KINDS),
        ("export.opset=22", KINDS),
        ("export.weights=int4", {"export", "onnxruntime", "latency"}),
    ],
)
def test_keys_are_those_of_what_a_step_reads(bench, override, changed):
    suite(bench)

    def keys(*arguments):
        return {step["kind"]: step["key"] for step in bench.plan(*arguments)["steps"]}

    before, after = keys(), keys("--set", override)
    assert {kind for kind, key in before.items() if after[kind] != key} == changed


@pytest.mark.parametrize(
    ("head", "more", "error"),
    [
        ("export: {chekc: 3}\n", "", "toy.yaml:3: unknown key 'chekc'"),
        ("", "export: {check: 0}", "toy.yaml:4: "),
        ("export: {opset: 20}\n", "", "toy.yaml:3: "),
        ("export: {weights: int2}\n", "", "toy.yaml:3: "),
    ],
)
def test_a_mistake_in_what_is_asked_for_is_one_line_with_file_and_line(bench, head, more, error):
    suite(bench, block(more=more), head=head)
    said = bench.error()
    assert error in said, said


@pytest.mark.slow("it exports a network; test_exporting has the same line")
def test_a_network_that_cannot_be_written_fails_its_cell_with_one_line(bench):
    suite(bench, block("toyq", "hw/w4a4"))
    assert bench.run().code == 1
    row = bench.row()
    assert row["status"] == "failed"
    assert row["reason"].startswith("export: the quantized network is a Sequential"), row["reason"]
    assert row.get("traceback") is None


def test_needed_packages_are_those_of_the_extra():
    assert set(NEEDED) == {"onnx", "onnx_ir", "onnxscript", "onnxruntime"}
