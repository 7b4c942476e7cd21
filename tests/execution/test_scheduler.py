import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from zsqbench import store as store_module

KINDS = ("resolve", "baseline", "generate", "quantize", "evaluate")


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


# --- steps run once -------------------------------------------------------------------------------------------------


def test_equal_steps_of_two_cells_run_once(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run()
    steps = [call for call in bench.calls() if not call.startswith("load")]
    assert steps == ["evaluate", "generate 0", "quantize 0", "evaluate", "quantize 0", "evaluate"]


def test_a_variant_that_says_the_same_is_the_same_step(bench):
    bench.matrix("generator: [toy, same]", head="generators: {same: {method: toy, images: 4}}")
    bench.run()
    assert (bench.calls().count("generate 0"), list(bench.statuses().values())) == (1, ["done", "done"])


def test_a_second_run_runs_nothing_and_leaves_the_rows_as_they_are(bench):
    bench.run()
    rows = (bench.results / "toysuite.jsonl").read_bytes()
    bench.calls()
    said = bench.run()
    assert (0, [], rows) == (said.code, bench.calls(), (bench.results / "toysuite.jsonl").read_bytes())


def test_a_second_run_of_excluded_impossible_and_failed_cells_leaves_the_rows_as_they_are(bench):
    head = "exclude: [{scheme: hw/w2a2, because: shown once}]"
    bench.add_plugin(
        "class Bad(Toy):\n    name = 'bad'\n    def generate(self, teacher, ctx): raise ValueError('no')\n"
    )
    bench.matrix("generator: [toy, bad], scheme: [hw/w4a4, hw/w2a2, float]", head=head)
    bench.run()
    first = (bench.results / "toysuite.jsonl").read_text()
    bench.run()
    assert first.splitlines() == (bench.results / "toysuite.jsonl").read_text().splitlines()


def test_a_run_into_another_folder_of_results_takes_everything_from_the_store(bench):
    bench.run()
    bench.calls()
    bench.run("--results", bench.folder / "elsewhere")
    assert bench.calls() == []


def test_a_new_cell_runs_only_what_is_new(bench):
    bench.matrix("seed: 0")
    bench.run()
    bench.calls()
    bench.matrix("seed: [0, 1]")
    bench.run()
    steps = [call for call in bench.calls() if not call.startswith("load")]
    assert steps == ["generate 1", "quantize 1", "evaluate"]


def test_rows_stand_in_the_order_of_the_suite(bench):
    bench.matrix("seed: 1")
    bench.run()
    bench.matrix("seed: [0, 1, 2]")
    bench.run()
    assert [row["seed"] for row in bench.rows().values()] == [0, 1, 2]


def test_rows_of_cells_that_are_not_selected_are_kept(bench):
    bench.run()
    bench.run("-k", "w4a4:1")
    assert list(bench.statuses().values()) == ["done", "done"]


def test_rows_of_cells_that_the_suite_no_longer_has_go(bench):
    bench.run()
    bench.matrix("seed: 1")
    bench.run()
    assert list(bench.rows()) == ["toytask:a:toy:toyq:hw/w4a4:1"]


def test_rows_that_another_run_wrote_meanwhile_are_kept(bench):
    bench.run()
    whole = (bench.results / "toysuite.jsonl").read_text()
    other = whole.splitlines()[1]
    (bench.results / "toysuite.jsonl").unlink()
    bench.add_plugin(f"""
@zsqbench.hookimpl
def suite_started(suite, plan):
    results = Path({str(bench.results)!r})
    results.mkdir(exist_ok=True)
    with (results / "toysuite.jsonl").open("a") as file:
        file.write({other!r} + "\\n")
""")
    bench.run("-k", "w4a4:0", "--plugin", bench.folder / "extra.py")
    assert sorted(bench.rows()) == ["toytask:a:toy:toyq:hw/w4a4:0", "toytask:a:toy:toyq:hw/w4a4:1"]


def test_a_row_holds_what_is_needed_to_read_it_alone(bench):
    bench.matrix("generator: small", head="generators: {small: {method: toy, images: 2}}")
    bench.run()
    (row,) = bench.rows().values()
    read = {
        "changed": row["methods"]["generator"]["changed"],
        "data": row["data"],
        "steps": sorted(row["seconds"]),
        "classes": row["model_facts"]["classes"],
        "cores": row["environment"]["cores"],
    }
    expected = {
        "changed": {"images": 2},
        "data": {"evaluated": 20, "calibrated": 2},
        "steps": ["baseline", "evaluate", "generate", "quantize"],
        "classes": 10,
        "cores": os.cpu_count(),
    }
    assert expected == read


def test_a_row_of_real_images_is_marked_as_not_data_free(bench):
    bench.matrix("generator: [toy, toyreal]")
    bench.run()
    assert [row.get("data_free", True) for row in bench.rows().values()] == [True, False]


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failing_quantizer_blocks_only_its_own_cells(bench):
    bench.add_plugin(
        "class Bad(ToyQuantizer):\n    name = 'bad'\n    def quantize(self, *all): raise RuntimeError('no')\n"
    )
    bench.matrix("quantizer: [bad, toyq], seed: [0, 1]")
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (1, ["failed", "failed", "done", "done"])


def test_a_failing_generator_fails_once_and_blocks_all_that_needs_it(bench):
    bench.add_plugin(
        "class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): note('bad'); raise RuntimeError('no')\n"
    )
    bench.matrix("generator: [bad, toy], quantizer: [toyq, unseeded]")
    bench.run()
    reasons = [row.get("reason") for row in bench.rows().values()]
    assert (bench.calls().count("bad"), reasons) == (1, ["generate: RuntimeError: no"] * 2 + [None] * 2)


def test_a_failed_cell_still_has_what_the_float_network_reached(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: bad")
    bench.run()
    (row,) = bench.rows().values()
    assert list(row["float_metrics"]) == ["top1"]


def test_a_model_that_cannot_be_loaded_fails_its_cells_only(bench):
    bench.add_plugin("""
class Breaks(ToyTask):
    name = "breaks"
    def load(self, model, ctx):
        if model.base == "b":
            raise OSError("truncated weights")
        return super().load(model, ctx)
""")
    bench.matrix("task: breaks, model: [b, a]")
    said = bench.run()
    row = bench.rows()["breaks:b:toy:toyq:hw/w4a4:0"]
    assert (
        said.code,
        sorted(bench.statuses().values()),
        "OSError: truncated weights" in row["reason"],
    ) == (1, ["done", "failed"], True)


def test_a_network_without_batch_normalisation_runs_with_methods_that_need_none(bench):
    bench.matrix("model: without_bn")
    bench.run()
    assert list(bench.statuses().values()) == ["done"]


def test_a_failed_cell_is_tried_again_by_the_next_run(bench):
    bench.add_plugin("""
class Moody(Toy):
    name = "moody"
    def generate(self, teacher, ctx):
        if not (HERE / "ready").exists():
            raise RuntimeError("not yet")
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: moody")
    first = bench.run().code
    bench.write("ready", "")
    assert (first, bench.run().code) == (1, 0)


def test_data_that_is_not_there_is_told_before_anything_runs(bench):
    said = bench.run("--data-root", bench.folder / "nowhere")
    expected = f"error: task toytask: there is no folder {bench.folder}/nowhere/data\n"
    assert (2, expected, []) == (said.code, said.err, bench.calls())


# --- a quantizer that goes on from the result of another ------------------------------------------------------------


STARTS = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        note(f"from {ctx.start[-1].bias[0].item():.3f}")
        super().quantize(student, teacher, data, ctx)

class Bad(ToyQuantizer):
    name = "bad"

    def quantize(self, *all):
        raise RuntimeError("no")
"""


def started(bench, first="toyq", block="quantizer: fine"):
    bench.add_plugin(STARTS)
    bench.matrix(block, head=f"quantizers: {{fine: {{method: starts, start: first}}, first: {{method: {first}}}}}")
    return bench.run()


def test_what_two_cells_start_from_is_made_once(bench):
    started(bench, block="quantizer: [fine, first]")
    calls = bench.calls()
    assert (calls.count("quantize 0"), list(bench.statuses().values())) == (3 - 1, ["done", "done"])
    assert [call.split()[0] for call in calls].count("from") == 1


def test_a_row_holds_what_its_quantizer_started_from(bench):
    started(bench)
    (row,) = bench.rows().values()
    assert row["keys"]["start"] in {path.name for path in bench.artifacts("quantize")}
    assert (
        sorted(row["seconds"])
        == sorted(row["peak_memory"])
        == ["baseline", "evaluate", "generate", "quantize", "start"]
    )
    described = row["methods"]["quantizer"]
    assert (described["changed"], described["start"]["method"]) == ({"start": "first"}, "toyq")


def test_a_start_that_fails_fails_its_cell_with_its_name(bench):
    said = started(bench, first="bad")
    (row,) = bench.rows().values()
    assert (said.code, row["status"], row["reason"]) == (1, "failed", "start first: RuntimeError: no")
    assert "RuntimeError: no" in row["traceback"]


def test_a_damaged_start_is_made_again_where_it_is_needed(bench):
    started(bench, block="quantizer: first")
    flip(bench.artifacts("quantize")[0] / "model.safetensors")
    bench.calls()
    said = started(bench)
    assert (said.code, [call.split()[0] for call in bench.calls()].count("quantize")) == (0, 2)


def test_a_start_that_is_gone_is_no_reason_to_run_a_finished_cell_again(bench):
    started(bench)
    rows = (bench.results / "toysuite.jsonl").read_bytes()
    key = next(iter(bench.rows().values()))["keys"]["start"]
    (bench.home / "store" / "quantize" / key).rename(bench.folder / "aside")
    bench.calls()
    assert (bench.run().code, bench.calls(), (bench.results / "toysuite.jsonl").read_bytes()) == (0, [], rows)


# --- agreement with the float network, and what papers say ----------------------------------------------------------


PREDICTS = """
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
    bench.add_plugin(PREDICTS.replace("FLOAT", full).replace("QUANTIZED", quantized))
    bench.matrix("task: predicts")
    bench.run()
    (row,) = bench.rows().values()
    assert row["metrics"].get("agreement") == agreement
    assert "agreement" not in row["float_metrics"]


def test_predictions_of_other_samples_say_nothing_of_agreement(bench):
    bench.add_plugin(PREDICTS.replace("[True] * 4", "[]").replace("FLOAT", "[0, 1]").replace("QUANTIZED", "[0, 1, 2]"))
    bench.matrix("task: predicts")
    bench.run()
    (row,) = bench.rows().values()
    assert (row["status"], list(row["metrics"])) == ("done", ["top1"])


PUBLISHED = """
name: toysuite
plugins: [toy.py]
models: {resnet18: {base: a}}
generators: {hast: {method: toy}}
quantizers: {hast: {method: toyq}}
matrix:
  - {task: toytask, model: resnet18, generator: hast, quantizer: hast, scheme: [hast/w3a3, hast/w4a4, float]}
"""


def test_a_row_holds_what_a_paper_says_of_its_cell_whatever_became_of_it(bench):
    bench.suite(f"{PUBLISHED}published: {{source: hast, table: [2, 4]}}\n")
    bench.run()
    rows = list(bench.rows().values())
    assert [row.get("published", {}).get("value") for row in rows] == [51.15, 66.91, None]
    assert rows[0]["published"]["source"] == "HAST, Table 2"


def test_a_table_that_a_suite_names_later_is_added_to_its_rows_and_nothing_runs(bench):
    bench.suite(PUBLISHED)
    bench.run()
    bench.calls()
    bench.suite(f"{PUBLISHED}published: {{source: hast, table: 2}}\n")
    bench.run()
    added = [row.get("published", {}).get("value") for row in bench.rows().values()]
    bench.suite(PUBLISHED)
    bench.run()
    assert (bench.calls(), added) == ([], [51.15, 66.91, None])
    assert not any("published" in row for row in bench.rows().values())


# --- diagnostics ----------------------------------------------------------------------------------------------------


def breaks(monkeypatch, error=ZeroDivisionError):
    def diagnose(*_):
        raise error

    monkeypatch.setattr("zsqbench.synthesis.diagnose", diagnose)


def test_a_calibration_set_has_diagnostics_and_pictures(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run()
    (folder,) = bench.artifacts("diagnose")
    data = json.loads((folder / "diagnostics.json").read_text())
    assert {"diagnostics.json", "diagnostics.png", "images.png"} <= {path.name for path in folder.iterdir()}
    assert (data["set"]["images"], data["real"]["images"], data["step"]) == (4, 4, "diagnose a toy seed 0")


def test_a_task_without_other_images_than_it_evaluates_has_none_to_compare_with(bench):
    (bench.folder / "data" / "train.txt").unlink()
    bench.matrix("")
    bench.run()
    data = json.loads((bench.artifacts("diagnose")[0] / "diagnostics.json").read_text())
    assert (data["real"], data["absent"]["real"]) == (None, "task toytask has no images that it does not evaluate")


def test_diagnostics_that_fail_fail_no_cell_and_are_tried_again(bench, monkeypatch):
    with monkeypatch.context() as patch:
        breaks(patch)
        first = bench.run()
    assert (first.code, list(bench.statuses().values())) == (0, ["done", "done"])
    assert last_line(first.err).endswith("; so did 1 others; results do not depend on it")
    rows = (bench.results / "toysuite.jsonl").read_bytes()
    second = bench.run()
    assert (second.code, len(bench.artifacts("diagnose")), "warning" in second.err) == (0, 2, False)
    assert rows == (bench.results / "toysuite.jsonl").read_bytes()
    assert not list((bench.home / "partial").iterdir())


def last_line(text):
    return text.rstrip().splitlines()[-1]


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


# --- interruption ---------------------------------------------------------------------------------------------------

ONCE = """
def interrupt():
    if not (HERE / "was").exists():
        (HERE / "was").touch()
        raise KeyboardInterrupt
"""

INTERRUPTED = {
    "while a model is loaded": ("task", "class T(ToyTask): {}", "load(self, model, ctx)"),
    "in a task": ("task", "class T(ToyTask): {}", "evaluate(self, module, pretrained, ctx)"),
    "in a generator": ("generator", "class G(Toy): {}", "generate(self, teacher, ctx)"),
    "in a quantizer": ("quantizer", "class Q(ToyQuantizer): {}", "quantize(self, student, teacher, data, ctx)"),
    "before the first step": ("scheme", "", "suite_started()"),
    "after a step": ("scheme", "", "step_finished(step)"),
    "after a cell": ("scheme", "", "cell_finished()"),
}
"""Where, the axis that a method of this name stands on, and what it does differently."""


def interrupting_plugin(base, signature):
    """A plugin in which the first call of one function ends in an interruption."""
    if not base:
        step = "step.kind == 'quantize' and " if "step" in signature.partition("(")[2] else ""
        return f"{ONCE}\n@zsqbench.hookimpl\ndef {signature}: {step}interrupt()\n"
    name, _, arguments = signature.partition("(self, ")
    body = f"\n    name = 'i'\n    def {signature}:\n        interrupt()\n        return super().{name}({arguments}\n"
    return ONCE + base.format(body)


@pytest.fixture(params=INTERRUPTED)
def interrupted(bench, request):
    """A run that was interrupted, and what it said."""
    axis, base, signature = INTERRUPTED[request.param]
    bench.add_plugin(interrupting_plugin(base, signature))
    names = {"task": "[toytask, i]", "generator": "[toy, i]", "quantizer": "[toyq, i]", "scheme": "[hw/w4a4, hw/w8a8]"}
    bench.matrix(f"{axis}: {names[axis]}, seed: [0, 1]")
    return bench, bench.run()


def test_an_interrupted_run_ends_with_130_and_valid_rows(interrupted):
    bench, said = interrupted
    assert (said.code, {"done", "interrupted"} >= set(bench.statuses().values())) == (130, True), said.err


def test_an_interrupted_run_has_a_row_for_every_cell_and_shows_its_table(interrupted):
    bench, said = interrupted
    assert (len(bench.rows()), said.out.startswith("# toysuite")) == (4, True), said.err


def test_running_again_finishes_an_interrupted_run(interrupted):
    bench, _ = interrupted
    assert (bench.run().code, list(bench.statuses().values())) == (0, ["done"] * 4)


def test_an_interruption_while_a_model_is_loaded_again_keeps_the_rows_of_finished_cells(bench):
    bench.add_plugin("""
class I(ToyTask):
    name = "i"
    def load(self, model, ctx):
        if (HERE / "now").exists():
            raise KeyboardInterrupt
        return super().load(model, ctx)
""")
    bench.matrix("task: i")
    bench.run()
    bench.write("now", "")
    said = bench.run("--home", bench.folder / "an-empty-store")
    assert (said.code, list(bench.statuses().values())) == (130, ["done"])


def test_an_interruption_in_an_empty_store_keeps_the_rows_of_finished_cells(bench):
    bench.add_plugin("""
class I(Toy):
    name = "i"

    def generate(self, teacher, ctx):
        if (HERE / "now").exists():
            raise KeyboardInterrupt
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: i, seed: [0, 1]")
    bench.run()
    bench.write("now", "")
    said = bench.run("--home", bench.folder / "an-empty-store")
    assert (said.code, list(bench.statuses().values())) == (130, ["done", "done"])


def test_rows_of_cells_that_are_not_selected_stay_when_a_value_is_overridden(bench):
    bench.matrix("seed: [0, 1]")
    bench.run()
    bench.run("-k", ":1", "--set", "generators.toy.images=3")
    assert list(bench.statuses().values()) == ["done", "done"]


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_artifact_is_made_again(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    flip(next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json"))
    (bench.results / "toysuite.jsonl").unlink()
    for later in KINDS[KINDS.index(kind) + 1 :] if kind in ("generate", "quantize") else ():
        for path in bench.artifacts(later):
            path.rename(bench.folder / path.name)
    said = bench.run()
    damaged = [path.name for path in (bench.home / "damaged").iterdir()]
    assert (0, ["done"], [kind]) == (
        said.code,
        list(bench.statuses().values()),
        [name.split("-")[0] for name in damaged],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["", '{"files": {}}'])
def test_a_damaged_manifest_stops_no_run(bench, kind, content):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    (folder / "manifest.json").write_text(content)
    (bench.results / "toysuite.jsonl").unlink()
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (0, ["done"]), said.err


def test_facts_that_another_version_wrote_are_made_again(bench):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts("resolve")
    facts = json.loads((folder / "facts.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "facts.json").write_text(json.dumps(facts | {"flops": 3}))
    manifest["files"]["facts.json"] = store_module.file_digest(folder / "facts.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert bench.run().code == 0


@pytest.mark.parametrize("kind", ["baseline", "evaluate"])
def test_the_next_run_makes_again_what_verify_put_aside(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    flip(next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json"))
    bench.zsqbench("cache", "verify", "--home", bench.home)
    again = bench.run()
    assert (0, [folder]) == (again.code, bench.artifacts(kind))


def test_a_row_that_was_cut_off_is_written_again_from_the_store(bench):
    bench.run()
    path = bench.results / "toysuite.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    bench.calls()
    said = bench.run()
    assert (said.code, bench.calls(), list(bench.statuses().values())) == (0, [], ["done", "done"])


# --- full disks -----------------------------------------------------------------------------------------------------


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_store_on_a_full_disk_fails_its_cells_in_one_line(bench, monkeypatch):
    bench.matrix("")
    bench.run()
    bench.matrix("seed: [0, 1]")
    monkeypatch.setattr(store_module.Store, "write", no_space)
    said = bench.run()
    row = bench.rows()["toytask:a:toy:toyq:hw/w4a4:1"]
    expected = f"generate: cannot write to the store {bench.home}: No space left on device"
    assert (1, expected, False) == (said.code, row["reason"], "traceback" in row)


def test_a_full_disk_keeps_what_is_done(bench, monkeypatch):
    write = store_module.Store.write

    def first_only(self, kind, key, info, fill):
        if list((self.home / "store").glob("evaluate/*")):
            no_space()
        write(self, kind, key, info, fill)

    monkeypatch.setattr(store_module.Store, "write", first_only)
    bench.run()
    assert list(bench.statuses().values()) == ["done", "failed"]


def test_times_that_cannot_be_kept_stop_no_run(bench):
    (bench.home / "timings.jsonl").mkdir(parents=True)
    said = bench.run()
    assert (said.code, list(bench.statuses().values())) == (0, ["done", "done"]), said.err


def test_a_results_folder_that_is_none_ends_the_run_in_one_line(bench):
    bench.write("results", "a file where the folder should be")
    said = bench.run()
    last = said.err.splitlines()[-1]
    assert (said.code, last.startswith(f"error: cannot read {bench.results}/toysuite.jsonl: ")) == (2, True), said.err


def test_a_table_that_cannot_be_written_is_still_printed(bench):
    (bench.results / "toysuite.md").mkdir(parents=True)
    said = bench.run()
    assert (said.code, said.out.startswith("# toysuite")) == (2, True), said.err


def test_a_home_that_is_a_file_is_refused_in_one_line(bench):
    said = bench.run("--home", bench.file)
    assert (said.code, len(said.err.splitlines())) == (2, 1), said.err


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tiny disk here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - the same


def test_a_store_on_a_tiny_disk_keeps_what_fits_and_says_what_did_not(bench, tiny_disk):
    bench.matrix("generator: [toy, many]", head="generators: {many: {method: toy, images: 400}}")
    said = bench.run("--home", tiny_disk)
    few, many = bench.rows().values()
    assert (said.code, few["status"], many["status"]) == (1, "done", "failed"), said.err
    assert many["reason"].startswith(f"generate: cannot write to the store {tiny_disk}: ")


def test_a_home_on_a_disk_that_is_full_from_the_start_is_refused_in_one_line(bench, tiny_disk):
    with contextlib.suppress(OSError):
        (tiny_disk / "filler").write_bytes(bytes(256 * 1024))
    said = bench.run("--home", tiny_disk / "home")
    assert (said.code, len(said.err.splitlines()), "No space left on device" in said.err) == (2, 1, True), said.err


# --- the pool: real processes -----------------------------------------------------------------------------------------


def test_the_pool_survives_whatever_a_method_does_to_its_worker(bench):
    """One start for all: each start of a worker takes seconds."""
    bench.add_plugin("""
class Exits(Toy):
    name = "exits"
    def generate(self, *all): sys.exit(0)

class Dies(Toy):
    name = "dies"
    def generate(self, *all): note("dies"); os._exit(3)

class Raises(Toy):
    name = "raises"
    def generate(self, *all): raise ValueError("no")
""")
    bench.matrix("generator: [toy, exits, dies, raises, toyreal]")
    said = bench.run(workers=2)
    reasons = {row["generator"]: (row["status"], row.get("reason")) for row in bench.rows().values()}
    died = "generate: the worker process died (killed, out of memory, or it called exit)"
    expected = {
        "toy": ("done", None),
        "exits": ("failed", "generate: SystemExit: 0"),
        "dies": ("failed", died),
        "raises": ("failed", "generate: ValueError: no"),
        "toyreal": ("done", None),
    }
    assert (1, expected, 2) == (said.code, reasons, bench.calls().count("dies"))


def test_the_pool_makes_the_artifacts_that_one_process_makes(bench):
    bench.matrix("")
    bench.run_anew("here")
    (here,) = bench.rows().values()
    bench.run_anew("pool", workers=1)
    (pool,) = bench.rows().values()
    assert [here[name] for name in ("keys", "metrics", "definition")] == [
        pool[name] for name in ("keys", "metrics", "definition")
    ]


def test_control_c_ends_the_pool_at_once_with_valid_rows(bench):
    bench.add_plugin("""
import time
class Slow(Toy):
    name = "slow"
    def generate(self, teacher, ctx):
        (HERE / "started").touch()
        time.sleep(60)
""")
    bench.matrix("generator: [toy, slow]")
    bench.write(
        "start.py",
        """
        import signal, sys
        from zsqbench.cli import main
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it as ignored
            main(sys.argv[1:])
        """,
    )
    arguments = ["run", bench.file, "--workers", 1, "--no-plugin", "mlflow", *bench.places()]
    checkout = os.path.dirname(os.path.dirname(store_module.__file__))  # noqa: PTH120 - short
    process = subprocess.Popen(
        [sys.executable, bench.folder / "start.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": checkout},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (bench.folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, list(bench.statuses().values())) == (130, ["done", "interrupted"]), out + err


def test_nothing_is_made_of_a_network_that_does_not_reach_what_the_suite_says(bench):
    bench.matrix("model: [mine, a], seed: [0, 1]", head="models: {mine: {base: b, float_accuracy: 0.5}}")
    bench.run(workers=2)
    assert [row["status"] for row in bench.rows().values()] == ["failed"] * 2 + ["done"] * 2
    assert [len(bench.artifacts(kind)) for kind in ("generate", "quantize", "evaluate")] == [2, 2, 2]
