import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import pytest

from zsqbench import scheduler
from zsqbench.scheduler import Run

BROKEN = "raise RuntimeError('no luck')"

SOUND = """
import torch, zsqbench

class Mine(zsqbench.Generator):
    name = "mine"

    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(ctx.randn(self.images, *teacher.input_size))

@zsqbench.hookimpl
def register_generators():
    return [Mine]
"""


def last(text):
    return text.splitlines()[-1]


# --- exit codes -----------------------------------------------------------------------------------------------------


def test_zero_when_all_cells_are_done(bench):
    assert bench.run().code == 0


def test_zero_when_cells_are_excluded_or_impossible_as_the_suite_says(bench):
    bench.matrix("scheme: [hw/w4a4, float], seed: [0, 1]", head="exclude: [{seed: 1, because: once is enough}]")
    assert bench.run().code == 0


def test_one_when_a_cell_failed(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise ValueError\n")
    bench.matrix("generator: [toy, bad]")
    assert bench.run().code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "zzz"],
        ["runn", "smoke"],
        ["run", "smoke", "--workers", "-1"],
        ["run", "smoke", "--workers", "many"],
        ["plan", "smoke", "--format", "yaml"],
        ["plan", "smoke", "--no-plugin", "zzz"],
        ["plan", "smoke", "--plugin", "zzz.py"],
        ["plan", "smoke", "--set", "zzz"],
        ["plan", "smoke", "-k", "and"],
        ["leaderboard", "zzz"],
        ["show", "zzz", "x"],
        ["plugins", "list", "zzz"],
        ["plugins", "check", "zzz"],
        ["plugins", "check", "zzz.py"],
        ["plugins", "check", "pool"],
        ["plugins", "check", "noise", "--set", "zzz"],
        ["plugins", "check", "noise", "--set", "imags=4"],
        ["plugins", "check", "noise", "--set", "images=0"],
        ["plugins", "check", "classification"],
        ["plugins", "new", "generator", "noise"],
        ["plugins", "new", "generator", "Mine"],
        ["plugins", "new", "engine", "mine"],
        ["run", "smoke", "--device", "banana", "--workers", "0"],
    ],
)
def test_two_for_a_mistake_of_usage(bench, monkeypatch, arguments):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench(*arguments)
    assert (said.code, said.out, "Traceback" in said.err) == (2, "", False), said.err


@pytest.mark.parametrize("raised", [RuntimeError("broken"), KeyError("x"), AssertionError()])
def test_three_for_a_bug_of_ours_with_its_traceback(bench, monkeypatch, raised):
    def fail(*_):
        raise raised

    monkeypatch.setattr(Run, "execute", fail)
    said = bench.run()
    expected = "this is a bug of zsqbench; please report it with the lines above"
    assert (3, expected, True) == (said.code, last(said.err), "Traceback" in said.err)


def test_four_when_a_plugin_that_the_suite_needs_cannot_load(bench):
    broken = bench.write("broken.py", BROKEN)
    bench.matrix("generator: theirs")
    said = bench.run("--plugin", broken)
    expected = f"plugin 'broken' ({broken}): RuntimeError: no luck"
    assert (said.code, len(said.err.splitlines()), expected in said.err) == (4, 1, True), said.err


def test_a_broken_plugin_that_the_suite_does_not_need_is_a_warning(bench):
    broken = bench.write("broken.py", BROKEN)
    said = bench.run("--plugin", broken)
    expected = f"warning: plugin broken ({broken}) did not load: RuntimeError: no luck"
    assert (said.code, expected in said.err.splitlines()) == (0, True), said.err


@pytest.mark.parametrize("command", ["leaderboard", "show"])
def test_a_broken_plugin_does_not_stop_a_look_at_results(bench, command):
    bench.run()
    bench.write("toy.py", BROKEN)
    cell = ["w4a4:1"] if command == "show" else []
    assert bench.zsqbench(command, bench.file, *cell, "--results", bench.results).code == 0


def test_five_when_nothing_is_selected(bench):
    said = bench.run("-k", "zzz")
    assert (said.code, said.err) == (5, "error: no cell of suite toysuite can run: none is selected\n")


def test_five_when_everything_is_excluded(bench):
    bench.matrix("", head="exclude: [{because: why not}]")
    assert bench.run().code == 5


def test_130_when_interrupted(bench, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "find_data", interrupt)
    said = bench.run()
    assert (said.code, last(said.err)) == (130, "interrupted")


# --- run ------------------------------------------------------------------------------------------------------------


def test_a_run_prints_its_table_and_writes_it(bench):
    said = bench.run()
    assert said.out == (bench.results / "toysuite.md").read_text()


def test_a_quiet_run_says_nothing_but_the_table(bench):
    assert bench.run("--quiet").err == ""


def test_notes_of_the_suite_are_told(bench):
    bench.matrix("seed: [0, 0]")
    said = bench.run()
    assert f"note: {bench.file}:5: 1 cell of block 1 already stood in the same block" == said.err.splitlines()[0]


def test_home_and_data_root_may_come_from_the_environment(bench, monkeypatch):
    monkeypatch.setenv("ZSQBENCH_HOME", str(bench.folder / "elsewhere"))
    monkeypatch.setenv("ZSQBENCH_DATA_ROOT", str(bench.folder / "root"))
    bench.write("root/data/eval.txt", "3")
    bench.write("root/data/train.txt", "4")
    shutil.rmtree(bench.folder / "data")
    said = bench.zsqbench("run", bench.file, "--workers", 0, "--no-plugin", "mlflow", "--results", bench.results)
    assert (said.code, (bench.folder / "elsewhere" / "store").is_dir()) == (0, True), said.err


def test_folders_are_relative_to_where_the_command_runs(bench, monkeypatch):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench("run", "toy.yaml", "--workers", 0, "--no-plugin", "mlflow")
    assert (said.code, [(bench.folder / name).is_dir() for name in (".zsqbench", "results")]) == (0, [True] * 2)


def test_a_run_of_an_older_store_loads_no_model_again(bench):
    bench.run()
    bench.calls()
    bench.matrix("scheme: hw/w8a8, seed: 0")
    bench.run()
    assert bench.calls() == ["load a", "quantize 0", "evaluate"]


# --- plan -----------------------------------------------------------------------------------------------------------


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
        "  quantize  2 to do",
        "  evaluate  2 to do",
        "  diagnose  1 to do",
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
    assert (["toytask:a:toy:toyq:hw/w4a4:1"], ["a"], {*cell["steps"].values(), cell["diagnose"]}) == (
        [cell["cell"] for cell in plan["cells"]],
        plan["pending"],
        {step["key"] for step in plan["steps"]},
    )


def test_a_plan_needs_its_model_to_be_known(bench):
    bench.matrix("model: zzz")
    assert bench.error().endswith("unknown model 'zzz'; known: a, b, without_bn")


# --- show, leaderboard ----------------------------------------------------------------------------------------------


def show(bench, cell=""):
    """The row of a cell, and the lines after it and after its calibration set."""
    row, of_set, after = show_all(bench, cell)
    assert not of_set or of_set[0].startswith("calibration set: ")
    return row, after


def show_all(bench, cell=""):
    """The row of a cell, the lines on its calibration set, and the lines after them."""
    said = bench.zsqbench("show", bench.file, cell, *bench.places())
    assert said.code == 0, said.err
    row, end = json.JSONDecoder().raw_decode(said.out)
    lines = said.out[end:].strip().splitlines()
    if not lines or not lines[0].startswith("calibration set: "):
        return row, [], lines
    ends = [place for place, line in enumerate(lines) if not line or line.startswith("Traceback")]
    return row, lines[: ends[0]], lines[ends[0] + (not lines[ends[0]]) :]


def test_show_tells_all_of_a_cell(bench):
    bench.run()
    row, after = show(bench, "w4a4:1")
    assert (row["cell"], row["status"]) == ("toytask:a:toy:toyq:hw/w4a4:1", "done")
    assert after == ["nothing was quantized, or the quantizer left no map of it"]


def test_show_tells_what_was_quantized(bench):
    bench.matrix("quantizer: rtn, scheme: hw/w4a8")
    bench.run()
    _, (head, *table) = show(bench)
    assert head.split() == ["kind", "tensor", "role", "bits", "grid", "per", "range"]
    rows = [line.split() for line in table[:6]]
    assert [row[:6] for row in rows] == [
        ["weight", "0", "first_weight", "4", "affine", "channel"],
        ["weight", "4", "last_weight", "4", "affine", "channel"],
        ["activation", "input", "input", "float"],
        ["activation", "2", "relu", "8", "affine", "tensor"],
        ["activation", "4", "logits", "8", "affine", "tensor"],
        [],
    ]
    low, _, high = rows[3][6:]
    assert float(low) == 0 < float(high)
    # 4 x 3 x 3 x 3 and 10 x 144 weights with 4 and 10 zero points at 4 bits, 14 scales
    assert table[6] == f"weights: {56 + 725 + 56} bytes, {(108 + 1440) * 4:,} in float32 (7.4 times as many)"
    assert table[7].startswith("counted: ")


def test_show_tells_losses_of_reconstruction_and_notes(bench):
    bench.add_plugin("""
class Learns(ToyQuantizer):
    name = "learns"

    def quantize(self, student, teacher, data, ctx):
        for unit in ("stem", "block"):
            ctx.log(f"reconstruction/weights/{unit}", 2.0, 0)
            ctx.log(f"reconstruction/weights/{unit}", 0.5, 100)
        ctx.note("2 units")
        ctx.note("none was undone")
""")
    bench.matrix("quantizer: learns")
    bench.run()
    _, after = show(bench)
    assert after == [
        "nothing was quantized, or the quantizer left no map of it",
        "",
        "stage    unit   loss before  after  ratio",
        "weights  stem   2            0.5    0.25",
        "weights  block  2            0.5    0.25",
        "",
        "2 units",
        "none was undone",
    ]


def test_show_says_that_the_artifact_is_not_here(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    shutil.rmtree(bench.home)
    _, after = show(bench)
    assert after == [
        f"what was quantized is not in {bench.home}: this cell was run on another machine, or its artifact was removed"
    ]


def test_show_says_that_the_artifact_is_damaged(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    (bench.artifacts("quantize")[0] / "tensors.json").write_text("[]")
    said = bench.zsqbench("show", bench.file, "rtn", *bench.places())
    assert (said.code, "is damaged (the content of tensors.json has changed)" in said.err) == (2, True)


def test_show_tells_no_tensors_of_a_cell_that_never_ran(bench):
    bench.matrix("scheme: float, quantizer: [toyq, fp32], generator: none")
    bench.run()
    row, after = show(bench, "toyq")
    assert (row["status"], after) == ("impossible", [])


def test_show_tells_no_tensors_of_a_cell_that_failed(bench):
    bench.add_plugin(
        "class Bad(ToyQuantizer):\n    name = 'bad'\n    def quantize(self, *all): raise ValueError('oh')\n"
    )
    bench.matrix("quantizer: bad")
    bench.run()
    row, after = show(bench)
    assert (row["status"], after[0], after[-1]) == ("failed", "Traceback (most recent call last):", "ValueError: oh")


def test_show_tells_what_the_calibration_set_is_like(bench):
    bench.matrix("")
    bench.run()
    _, lines, _ = show_all(bench)
    assert lines[0] == "calibration set: 4 images, beside 4 real ones"
    assert [line[:16].strip() for line in lines[2:-2]] == [
        "BN gap",
        "worst layer",
        "output range",
        "difficulty",
        "class balance",
        "label balance",
        "diversity",
        "within classes",
        "pixels outside",
    ]
    assert [Path(line).name for line in lines[-2:]] == ["images.png", "diagnostics.png"]
    assert all(Path(line).is_file() for line in lines[-2:])


def test_show_as_json_has_all(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    said = bench.zsqbench("show", bench.file, "rtn", "--format", "json", *bench.places())
    shown = json.loads(said.out)
    assert (shown["row"]["status"], shown["calibration_set"]["set"]["images"]) == ("done", 4)
    assert set(shown["calibration_set"]["files"]) == {"diagnostics.json", "diagnostics.png", "images.png"}
    assert [entry["name"] for entry in shown["quantized"]["tensors"]][:2] == ["0", "4"]


def test_show_as_json_says_what_is_not_there(bench):
    bench.matrix("generator: none, quantizer: datafree")
    bench.run()
    shutil.rmtree(bench.home)
    shown = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    assert (shown["calibration_set"], shown["quantized"]) == ({"absent": "this cell has none"}, None)


def test_show_says_that_diagnostics_are_damaged(bench):
    bench.matrix("")
    bench.run()
    (bench.artifacts("diagnose")[0] / "diagnostics.json").write_text("{}")
    _, (line,), _ = show_all(bench)
    assert line.startswith("calibration set: its diagnostics cannot be read: ")


def test_show_says_why_diagnosing_failed(bench, monkeypatch):
    bench.matrix("")
    monkeypatch.setattr("zsqbench.synthesis.diagnose", lambda *_: 1 / 0)
    said = bench.run()
    _, lines, _ = show_all(bench)
    assert lines[0].startswith("calibration set: diagnosing it failed, the next run tries again: ")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    warning = "warning: diagnose a toy seed 0 failed: ZeroDivisionError: division by zero; results do not depend on it"
    assert (said.code, last(said.err.rstrip())) == (0, warning)


def test_show_tells_the_traceback_of_a_failed_cell(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise ValueError('no luck')\n")
    bench.matrix("generator: bad")
    bench.run()
    said = bench.zsqbench("show", bench.file, "bad", "--results", bench.results)
    assert (said.code, last(said.out.rstrip())) == (0, "ValueError: no luck")


def test_show_refuses_a_part_of_several_names(bench):
    bench.run()
    said = bench.zsqbench("show", bench.file, "w4a4", "--results", bench.results)
    expected = "error: 'w4a4' is part of 2 names: toytask:a:toy:toyq:hw/w4a4:0, toytask:a:toy:toyq:hw/w4a4:1\n"
    assert (2, expected) == (said.code, said.err)


def test_show_refuses_an_unknown_cell_with_what_there_is(bench):
    bench.run()
    said = bench.zsqbench("show", bench.file, "toytask:a:toy:toyq:hw/w4a4:2", "--results", bench.results)
    assert said.err.startswith(
        "error: unknown cell 'toytask:a:toy:toyq:hw/w4a4:2'; did you mean 'toytask:a:toy:toyq:hw/"
    )


def test_a_leaderboard_without_results_says_how_to_make_them(bench):
    said = bench.zsqbench("leaderboard", bench.file, "--results", bench.results)
    expected = f"error: there are no results of toysuite in {bench.results}; `zsqbench run {bench.file}` makes them\n"
    assert (2, expected) == (said.code, said.err)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_a_leaderboard_has_a_form_for_every_reader(bench, form):
    bench.run()
    said = bench.zsqbench("leaderboard", bench.file, "--results", bench.results, "--format", form)
    assert (said.code, "toyq" in said.out) == (0, True), said.err


# --- scheme ---------------------------------------------------------------------------------------------------------


def test_a_scheme_is_shown_tensor_by_tensor(bench):
    said = bench.zsqbench("scheme", "hw/w4a8", "cifar_resnet20")
    lines = said.out.splitlines()
    assert (said.code, lines[0]) == (0, "hw/w4a8 on cifar_resnet20"), said.err
    assert [line.split() for line in (lines[2], lines[3], lines[23], lines[24])] == [
        ["kind", "tensor", "role", "bits"],
        ["weight", "conv1", "first_weight", "4"],
        ["activation", "input", "input", "float"],
        ["activation", "relu", "relu", "8"],
    ]
    assert lines[-4:] == [
        "weights: 20 at 4 bits (1 first_weight, 18 weight, 1 last_weight)",
        "activations: 20 at 8 bits (19 relu, 1 logits); 11 in float (1 input, 9 addend, 1 pooled)",
        "batch normalisation: folded",
        "grid: the quantizer's choice",
    ]


def test_two_schemes_are_compared(bench):
    said = bench.zsqbench("scheme", "hw/w4a4", "academic/w4a4", "resnet20")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[2:8] == [
        ["kind", "tensor", "role", "hw/w4a4", "academic/w4a4"],
        ["weight", "conv1", "first_weight", "4", "8"],
        ["weight", "linear", "last_weight", "4", "8"],
        ["activation", "relu", "relu/stem", "4", "8"],
        ["activation", "linear", "logits", "4", "float"],
        [],
    ]
    assert "different bits: 2 of 20 weights and 2 of 31 activations" in said.out.splitlines()


def test_a_scheme_is_shown_as_json(bench):
    one = json.loads(bench.zsqbench("scheme", "pot/w8a8", "resnet20", "--format", "json").out)
    assert (one["scheme"], one["grid"], len(one["tensors"])) == ("pot/w8a8", "power_of_two", 51)
    two = json.loads(bench.zsqbench("scheme", "hw/w4a4", "hast/w4a4", "resnet20", "--format", "json").out)
    assert two["tensors"] == [{"kind": "activation", "name": "linear", "roles": ["logits"] * 2, "bits": [4, 32]}]


def test_a_published_network_is_not_downloaded_for_its_structure(bench, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    said = bench.zsqbench("scheme", "hast/w4a4", "torchvision/squeezenet1_1")
    assert (said.code, "26 relu" in said.out) == (0, True), said.err


def test_a_suite_brings_models_and_schemes_of_its_own(bench):
    bench.write(
        "my_net.py",
        """
        from torch import nn
        def build():
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        """,
    )
    bench.write(
        "own.yaml",
        """
        name: own
        tasks: {cifar: {method: classification, data: cifar10}}
        schemes: {mine: {base: academic, stem: null, relu: 6}}
        models:
          mynet: {file: my_net.py, weights: none, input_size: [3, 8, 8]}
        matrix:
          - {task: cifar, model: mynet, quantizer: fp32, scheme: float}
        """,
    )
    said = bench.zsqbench("scheme", "mine/w4a4", "mynet", "--suite", bench.folder / "own.yaml")
    assert said.code == 0, said.err
    assert [line.split()[1:] for line in said.out.splitlines()[3:8]] == [
        ["0", "first_weight", "8"],
        ["3", "last_weight", "8"],
        ["input", "input", "float"],
        ["1", "features", "8"],
        ["3", "logits", "float"],
    ]
    said = bench.zsqbench("scheme", "hw/w4a4", "cifar_resnet20", "--suite", bench.folder / "own.yaml")
    assert said.code == 0, said.err  # a named network that the suite does not use


def test_the_task_of_a_suite_builds_its_models(bench):
    said = bench.zsqbench("scheme", "hw/w4a4", "a", "--suite", bench.file)
    assert (said.code, "activations: 2 at 4 bits (1 relu, 1 logits)" in said.out) == (0, True), said.err


SCHEME_MISTAKES = {
    "an unknown scheme": (
        ["hww/w4a4", "resnet20"], "unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'? known: academic, ",
    ),
    "a scheme without bits": (["hw", "resnet20"], "scheme 'hw' is not a placement and bit-widths such as 'hw/w4a4'"),
    "an unknown model": (["hw/w4a4", "resnet21"], "unknown model 'resnet21'; did you mean 'resnet20'? known: "),
    "an unknown network of a library": (
        ["hw/w4a4", "torchvision/resnet19"], "unknown torchvision model 'resnet19'; did you mean 'resnet1",
    ),
    "a file": (["hw/w4a4", "net.py"], "model 'net.py' is a file: name it under 'models' in a suite, and give --suite"),
    "an unknown suite": (["hw/w4a4", "resnet20", "--suite", "smokes"], "there is no suite file smokes; did you mean"),
    "an unknown model of a suite": (
        ["hw/w4a4", "zzz", "--suite", "TOY"], "unknown model 'zzz'; known: a, b, without_bn",
    ),
    "a plugin without a suite": (
        ["hw/w4a4", "resnet20", "--plugin", "toy.py"], "--plugin and --no-plugin are for the methods of a suite; name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SCHEME_MISTAKES)
def test_a_mistake_of_the_scheme_command_is_one_line(bench, mistake):
    arguments, expected = SCHEME_MISTAKES[mistake]
    said = bench.zsqbench("scheme", *(bench.file if word == "TOY" else word for word in arguments))
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said.err
    assert said.err.startswith(f"error: {expected}")


def test_a_misspelt_model_of_a_suite_is_told_with_a_suggestion(bench):
    bench.matrix("model: mynet", head="models: {mynet: {base: a, weights: none}}")
    said = bench.zsqbench("scheme", "hw/w4a4", "mynt", "--suite", bench.file)
    assert said.err == f"error: unknown model 'mynt' in {bench.file}; did you mean 'mynet'? known: mynet\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("features_sum: 8", "unknown key 'features_sum'; did you mean 'feature_sum'? known: activation, addend, "),
        ("activations: a", "unknown key 'activations'; did you mean 'activation'? known: "),
        ("stem: 1", "schemes.mine.stem: expected 'w' (weight bits), 'a' (activation bits), 'float' or 2 to 16 bits"),
        ("relu: null", "schemes.mine.relu: expected 'w' (weight bits), 'a' (activation bits), 'float' or 2 to 16"),
        ("grid: pot", "schemes.mine.grid: expected 'affine', 'symmetric' or 'power_of_two', got \"pot\""),
    ],
)
def test_a_wrong_role_of_a_scheme_is_one_line_with_its_place(bench, key, expected):
    bench.matrix("scheme: mine/w4a4", head=f"schemes: {{mine: {{base: hw, {key}}}}}")
    said = bench.zsqbench("scheme", "mine/w4a4", "a", "--suite", bench.file)
    assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
    assert said.err.startswith(f"error: {bench.file}:3: {expected}")


@pytest.mark.parametrize("arguments", [[], ["hw/w4a4"], ["hw/w4a4", "hw/w4a4", "hw/w4a4", "resnet20"]])
def test_a_scheme_command_without_scheme_or_model_says_how_it_is_meant(bench, arguments):
    said = bench.zsqbench("scheme", *arguments)
    assert (said.code, said.err.splitlines()[0]) == (2, "Usage: zsqbench scheme [OPTIONS] SCHEME [SCHEME] MODEL")


# --- plugins --------------------------------------------------------------------------------------------------------


def test_plugins_are_listed_with_options_defaults_and_what_these_mean(bench):
    said = bench.zsqbench("plugins", "list", "toy", "--plugin", bench.folder / "toy.py")
    expected = [
        f"generator toy  (version 1, {bench.folder}/toy.py)",
        "    Noise.",
        "    images: integer, default 4  how many",
        "    scale: number, default 1.0  standard deviation",
    ]
    assert expected == said.out.splitlines()[:4]


def test_plugins_are_listed_as_json(bench):
    said = bench.zsqbench("plugins", "list", "--format", "json", "--plugin", bench.folder / "toy.py")
    listed = json.loads(said.out)
    names = {(entry["kind"], entry["name"]) for entry in listed["methods"]}
    assert {("engine", "pool"), ("generator", "toy"), ("quantizer", "toyq"), ("task", "toytask")} <= names


def test_a_broken_plugin_is_listed_with_its_error(bench):
    broken = bench.write("broken.py", BROKEN)
    said = bench.zsqbench("plugins", "list", "--plugin", broken)
    assert (0, f"broken plugin broken  ({broken}): RuntimeError: no luck") == (said.code, last(said.out))


def test_a_broken_plugin_that_is_asked_for_is_listed_with_its_traceback(bench):
    broken = bench.write("broken.py", BROKEN)
    said = bench.zsqbench("plugins", "list", "broken", "--plugin", broken)
    assert (said.code, "Traceback" in said.out) == (0, True)


def test_a_clash_is_listed_and_stops_no_list(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "twin.py"]
    said = bench.zsqbench("plugins", "list", *arguments)
    assert (said.code, "clash: two plugins provide a generator named 'toy': " in said.out) == (0, True)


def test_a_clash_stops_a_suite(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    said = bench.run("--plugin", bench.folder / "twin.py")
    assert (said.code, said.err.startswith("error: two plugins provide a ")) == (2, True)


def test_a_clash_is_one_line(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    said = bench.run("--plugin", bench.folder / "twin.py")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [
        "lambda_: float = Field(1.0, alias='lambda')",
        "path: Path | None = None",
        "pair: tuple[int, int] = (1, 2)",
        "words: set[str] = set()",
        "required: int",
        "choice: typing.Literal['a', 'b'] = 'a'",
        "limit: float = float('inf')",
        "nested: dict[str, list[int]] = {}",
    ],
)
def test_an_option_of_any_type_can_be_listed(bench, option):
    bench.add_plugin(f"import typing\nfrom pydantic import Field\nclass Mine(Toy):\n    name = 'mine'\n    {option}\n")
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "extra.py"]
    said = bench.zsqbench("plugins", "list", "mine", *arguments)
    assert (said.code, option.split(":")[0].rstrip("_") in said.out) == (0, True), said.err


def test_a_plugin_file_that_keeps_the_contract_is_checked_line_by_line(bench):
    path = bench.write("mine.py", SOUND)
    said = bench.zsqbench("plugins", "check", path)
    head, *lines, summary = said.out.splitlines()
    assert (said.code, head) == (0, "generator mine  (set for the check: images=8)")
    assert {line[4:16].strip() for line in lines} == {"ok", "not checked"}
    assert re.fullmatch(r"    \d+ ok, 1 not checked, in \d+ s", summary)


def test_a_plugin_file_that_breaks_the_contract_fails_with_the_reason(bench):
    path = bench.write("mine.py", SOUND.replace("ctx.randn", "torch.randn"))
    said = bench.zsqbench("plugins", "check", path)
    assert (said.code, "FAILED      one seed gives one set of images, another seed another: " in said.out) == (1, True)


def test_checks_are_given_as_json(bench):
    path = bench.write("mine.py", SOUND)
    (checked,) = json.loads(bench.zsqbench("plugins", "check", path, "--set", "images=5", "--format", "json").out)
    assert [checked[key] for key in ("kind", "name", "passed", "set")] == ["generator", "mine", True, {}]
    assert {"check": "works on FrozenBN", "outcome": "ok", "reason": ""} in checked["checks"]


def test_every_method_of_a_file_is_checked_with_the_options_that_it_has(bench):
    arguments = ["--set", "scale=1e-1", "--set", "samples=10", "--model", "a", "--format", "json"]
    checked = json.loads(bench.zsqbench("plugins", "check", bench.folder / "toy.py", *arguments).out)
    names = {(each["kind"], each["name"]) for each in checked}
    assert {("generator", "toy"), ("generator", "toyreal"), ("quantizer", "toyq"), ("task", "toytask")} <= names


def test_an_installed_method_is_checked_by_name(bench):
    said = bench.zsqbench("plugins", "check", "noise", "--set", "clamp=false")
    assert (said.code, said.out.splitlines()[0]) == (0, "generator noise  (set for the check: images=8)")


def test_a_file_that_does_not_load_is_one_line_that_says_how_to_see_more(bench):
    path = bench.write("broken.py", BROKEN)
    said = bench.zsqbench("plugins", "check", path)
    hint = f"`zsqbench plugins list broken --plugin {path}` prints the traceback"
    assert (said.code, said.err) == (2, f"error: plugin broken did not load: RuntimeError: no luck; {hint}\n")


def test_a_file_without_methods_is_one_line(bench):
    said = bench.zsqbench("plugins", "check", bench.write("empty.py", ""))
    assert (said.code, "provides no generator, quantizer or task" in said.err) == (2, True)


@pytest.mark.parametrize("kind", ["generator", "quantizer", "task"])
def test_a_new_method_passes_the_checks_that_its_writer_is_told_of(bench, monkeypatch, kind):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench("plugins", "new", kind, "brand_new", "--into", "sub")
    head, check, _, _ = said.out.splitlines()
    assert (said.code, head) == (0, "wrote sub/brand_new.py and sub/test_brand_new.py; next:")
    checked = bench.zsqbench(*check.split()[1:])
    assert (checked.code, checked.out.startswith(f"{kind} brand_new")) == (0, True), checked


@pytest.mark.parametrize("kind", ["generator", "quantizer", "task"])
def test_a_new_method_runs_as_its_writer_is_told(bench, monkeypatch, kind):
    monkeypatch.chdir(bench.folder)
    *_, run = bench.zsqbench("plugins", "new", kind, "brand_new").out.splitlines()
    planned = bench.zsqbench("plan", *run.split()[2:], "--format", "json")
    assert (planned.code, "brand_new" in planned.out) == (0, True), planned.err


# --- cache ----------------------------------------------------------------------------------------------------------


def test_the_cache_is_listed_by_kind_and_label(bench):
    bench.matrix("")
    bench.run()
    lines = bench.zsqbench("cache", "ls", "--home", bench.home).out.splitlines()
    expected = ["baseline a", "diagnose a toy seed 0", "evaluate a toy toyq hw/w4a4 seed 0", "generate a toy seed 0"]
    assert expected == [line.split("MB  ")[1] for line in lines[:4]]


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_the_cache_is_listed_with_what_is_damaged_in_it(bench, content):
    bench.matrix("")
    bench.run()
    (bench.artifacts("generate")[0] / "manifest.json").write_text(content)
    said = bench.zsqbench("cache", "ls", "--home", bench.home)
    assert (said.code, "is damaged" in said.out) == (0, True), said.err


def test_an_empty_cache_is_listed_as_nothing(bench):
    assert (bench.zsqbench("cache", "ls", "--home", bench.home).code, "") == (0, "")


def test_a_sound_cache_is_verified(bench):
    bench.matrix("")
    bench.run()
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    assert (said.code, said.out) == (0, "6 artifacts, 0 damaged\n")


@pytest.mark.parametrize("kind", ["resolve", "baseline", "generate", "diagnose", "quantize", "evaluate"])
def test_verify_finds_a_flipped_byte_and_puts_the_artifact_aside(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    file = next(path for path in sorted(folder.iterdir()) if not path.name.startswith("manifest."))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    named = f"{kind} artifact {folder.name[:12]} is damaged (the content of {file.name} has changed)"
    assert (said.code, named in said.out, last(said.out), folder.exists()) == (1, True, "6 artifacts, 1 damaged", False)


def test_gc_says_what_would_go_and_removes_nothing(bench):
    bench.run()
    bench.matrix("seed: 0")
    bench.run()
    said = bench.zsqbench("cache", "gc", *bench.places())
    assert (last(said.out), len(bench.artifacts("generate"))) == ("4 artifacts would go; --yes removes them", 2)


def test_gc_removes_what_no_row_refers_to(bench):
    bench.run()
    bench.matrix("seed: 0")
    bench.run()
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    bench.calls()
    again = bench.run()
    assert (last(said.out), again.code, bench.calls()) == ("4 artifacts removed", 0, [])


def test_gc_removes_what_a_killed_writer_left(bench):
    bench.matrix("")
    bench.run()
    left = [bench.home / "store" / "generate" / ".abc.12345678", bench.home / "partial" / "abc"]
    for folder in left:
        folder.mkdir(parents=True)
    bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert [folder.exists() for folder in left] == [False, False]


def test_gc_does_not_guess_at_a_suite_without_rows(bench):
    bench.run()
    shutil.rmtree(bench.results)
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert (said.code, len(bench.artifacts("generate"))) == (2, 2)


# --- the rest -------------------------------------------------------------------------------------------------------


def test_help_names_the_exit_codes(bench):
    said = bench.zsqbench("--help")
    assert (said.code, "130 interrupted" in " ".join(said.out.split())) == (0, True)


def test_the_version_is_told_in_a_checkout_that_is_not_installed(bench, monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    said = bench.zsqbench("--version")
    assert (said.code, bool(said.out.strip())) == (0, True), said.err
