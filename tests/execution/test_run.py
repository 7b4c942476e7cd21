import errno
import json
import shutil

import pytest
from brief import parametrize_briefly

from zsqbench.reports.tables.standings import FOLDER


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


def test_data_that_is_not_there_is_told_before_anything_runs(bench):
    said = bench.run("--data-root", bench.folder / "nowhere")
    expected = f"error: task toytask: there is no folder {bench.folder}/nowhere/data\n"
    assert (2, expected, []) == (said.code, said.err, bench.calls())


ONCE = """
import signal

def interrupt():
    if not (HERE / "was").exists():
        (HERE / "was").touch()
        signal.raise_signal(signal.SIGINT)
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


@parametrize_briefly("where", INTERRUPTED, 3)
def test_an_interrupted_run_has_valid_rows_and_a_table_and_running_again_finishes_it(bench, where):
    axis, base, signature = INTERRUPTED[where]
    bench.add_plugin(interrupting_plugin(base, signature))
    names = {"task": "[toytask, i]", "generator": "[toy, i]", "quantizer": "[toyq, i]", "scheme": "[hw/w4a4, hw/w8a8]"}
    bench.matrix(f"{axis}: {names[axis]}, seed: [0, 1]")
    said = bench.run()
    assert (said.code, {"done", "interrupted"} >= set(bench.statuses().values())) == (130, True), said.err
    assert (len(bench.rows()), said.out.startswith("# toysuite")) == (4, True), said.err
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


# --- the end of a run -------------------------------------------------------------------------------------------------


HEARS = """
@zsqbench.hookimpl
def suite_finished(results, table):
    statuses = " ".join(result.status for result in results)
    note(f"finished: {statuses or 'nothing'}, {Path(table).name if table else 'no table'}")
"""

INTERRUPTS = """
class I(Toy{kind}):
    name = "i"

    def {call}(self, *arguments):
        raise KeyboardInterrupt
"""


def breaks(error):
    def broken(*_, **__):
        raise error

    return broken


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")

ENDINGS = {
    # The rest of the plugin, the axis that is given a method of it, the error, the exit code, the hooks that are heard.
    "done": ("", None, None, 0, "done, toysuite.md"),
    "a failed cell": (
        "class I(Toy):\n    name = 'i'\n    def generate(self, *all): raise ValueError('no')\n",
        "generator",
        None,
        1,
        "failed, toysuite.md",
    ),
    "Ctrl-C while a network is loaded": (
        INTERRUPTS.format(kind="Task", call="load"),
        "task",
        None,
        130,
        "interrupted, toysuite.md",
    ),
    "Ctrl-C while a step runs": (
        INTERRUPTS.format(kind="Quantizer", call="quantize"),
        "quantizer",
        None,
        130,
        "interrupted, toysuite.md",
    ),
    "Ctrl-C while it is planned": ("", None, ("plan.make_plan", KeyboardInterrupt), 130, "nothing, no table"),
    "Ctrl-C while the table is made": ("", None, ("Run._write_table", KeyboardInterrupt), 130, "done, no table"),
    "an error in the run loop": ("", None, ("Loop._fill_slots", RuntimeError("a bug")), 3, "nothing, no table"),
    "an engine that does not end": ("", None, ("Loop.close", RuntimeError("a bug")), 3, "done, toysuite.md"),
    "a full disk for rows": ("", None, ("ResultFile.append", NO_SPACE), 2, "nothing, no table"),
    "a full disk for all rows": ("", None, ("ResultFile.rewrite", NO_SPACE), 2, "done, no table"),
    "a full disk for the table": ("", None, ("write_atomically", NO_SPACE), 2, "done, no table"),
}


@parametrize_briefly("ending", ENDINGS, 4)
def test_the_end_of_a_run_is_told_once_however_it_ends(bench, monkeypatch, ending):
    source, axis, broken, code, heard = ENDINGS[ending]
    bench.add_plugin(HEARS + source)
    bench.matrix(f"{axis}: i" if axis else "")
    if broken:
        name, error = broken
        monkeypatch.setattr(f"zsqbench.execution.run.{name.removeprefix('plan.')}", breaks(error))
    said = bench.run()
    finished = [call for call in bench.calls() if call.startswith("finished")]
    assert (said.code, finished) == (code, [f"finished: {heard}"]), said.err


def test_a_run_that_never_began_does_not_end(bench):
    bench.add_plugin(HEARS)
    bench.matrix("")
    said = bench.run("--data-root", bench.folder / "nowhere")
    assert (said.code, bench.calls()) == (2, [])


def test_an_observer_that_fails_silences_no_other(bench, caplog):
    bench.add_plugin(HEARS)
    for name in ("aaa.py", "zzz.py"):
        bench.write(
            name,
            """
            import zsqbench

            @zsqbench.hookimpl
            def suite_finished(suite):
                raise ValueError(suite.name)
            """,
        )
    bench.matrix("")
    bench.file.write_text(bench.file.read_text().replace("toy.py, extra.py", "aaa.py, toy.py, extra.py, zzz.py"))
    said = bench.run()
    assert (said.code, bench.calls()[-1]) == (0, "finished: done, toysuite.md")
    assert [record.getMessage() for record in caplog.records] == [
        f"the observer suite_finished of plugin {name} failed: ValueError: toysuite" for name in ("zzz", "aaa")
    ]


OBSERVERS = {
    "raises KeyboardInterrupt": "raise KeyboardInterrupt",
    "goes to another folder": "os.chdir('/')",
    "changes what it is handed": """
        for value in handed:
            for name in ("metrics", "float_metrics", "keys", "cells", "steps", "cached", "rows", "tasks", "quantizers"):
                if hasattr(getattr(value, name, None), "clear"):
                    getattr(value, name).clear()
            if hasattr(value, "label"):
                value.key = "0" * 64
            if isinstance(value, list):
                value.clear()""",
    "exits": "sys.exit(0)",
    "raises what is no Exception": "raise GeneratorExit",
    "swallows nothing": "raise ValueError",
}
"""The deeds of an observer, whatever is told to it."""


@parametrize_briefly("does", OBSERVERS, 3)
def test_no_observer_changes_rows_table_or_exit_code(bench, does):
    bench.run_anew("alone")
    rows, table = bench.rows(), (bench.results / "toysuite.md").read_text()
    arguments = {
        "suite_started": "suite, plan",
        "step_finished": "step, outcome",
        "cell_finished": "suite, result, cached",
        "suite_finished": "suite, results, table",
    }
    bench.add_plugin(
        f"def act(*handed):\n        {OBSERVERS[does]}\n"
        + "".join(
            f"\n@zsqbench.hookimpl\ndef {hook}({names}):\n    note('heard')\n    act({names})\n"
            for hook, names in arguments.items()
        )
    )
    bench.calls()
    bench.matrix("seed: [0, 1]")
    said = bench.run_anew("observed")
    assert (said.code, bench.calls().count("heard")) == (0, 1 + 11 + 2 + 1), said.err
    assert measured(bench.rows()) == measured(rows)
    assert (bench.results / "toysuite.md").read_text() == table


def measured(rows):
    """Rows without what a clock says."""
    return {cell: {**row, "seconds": None, "peak_memory": None, "finished": None} for cell, row in rows.items()}


def test_an_observer_that_swallows_a_ctrl_c_does_not_keep_it_from_the_run(bench):
    bench.add_plugin("""
import signal
@zsqbench.hookimpl
def cell_finished(result):
    try:
        if result.status == "done":
            signal.raise_signal(signal.SIGINT)
    except BaseException:
        pass
""")
    bench.matrix("seed: [0, 1]")
    assert (bench.run().code, list(bench.statuses().values())) == (130, ["done", "interrupted"])


@pytest.mark.usefixtures("fatal_plugins")
def test_a_plugin_that_ends_the_process_at_import_is_left_out_in_workers_too(bench):
    fatal = bench.write("fatal.py", "import os; os._exit(0)")
    bench.matrix("")
    said = bench.run("--plugin", fatal, workers=1)
    assert (said.code, list(bench.statuses().values())) == (0, ["done"]), said.err


def entries(folder):
    """How many files and folders of steps are below a folder: what a cluster's quota counts."""
    return sum(1 for path in folder.rglob("*") if FOLDER not in path.parts)


def test_a_cell_takes_six_files_and_folders_and_what_cells_share_is_there_once(bench):
    """6 for each cell, 7 for each calibration set, 3 for each baseline, 2 for each network and each student, 12 in all.

    A cell: the folders of quantize and evaluate, a manifest in each, model and samples. A set: two folders, two
    manifests, images, two pictures. A baseline: folder, manifest, samples. A network, or its student: folder, manifest.
    In all: the store, a folder for each of seven kinds, what is remembered of files, rows and times, the folder of
    leases.
    Besides, a file for each column of the table says which methods tie; columns with the same bits have one.
    """
    bench.matrix("model: [a, b], generator: [toy, toyreal], quantizer: [toyq, unseeded], scheme: [hw/w4a4, hw/w8a8]")
    bench.run()
    cells, sets, networks, students = 16, 4, 2, 4
    assert list(bench.statuses().values()) == ["done"] * cells
    assert entries(bench.home) == 6 * cells + 7 * sets + 3 * networks + 2 * networks + 2 * students + 12
    assert 1 <= len(list((bench.home / FOLDER).iterdir())) <= 4
    bench.matrix(
        "model: [a, b], generator: [toy, toyreal], quantizer: [toyq, unseeded], scheme: [hw/w4a4, hw/w8a8, hw/w4a8]"
    )
    before = entries(bench.home)
    bench.run()
    assert entries(bench.home) - before == 6 * 8 + 2 * 2  # eight more cells of two students, of the same sets


# --- the rows of a run ------------------------------------------------------------------------------------------------


def file_of(bench):
    return bench.results / "toysuite.jsonl"


def test_a_row_that_a_hand_changed_is_made_again_from_its_artifact_with_a_warning(bench, caplog):
    bench.run()
    rows = file_of(bench).read_text()
    file_of(bench).write_text(rows.replace('"top1":60.0', '"top1":99.5', 1))
    bench.calls()
    said = bench.run()
    (warning,) = caplog.messages
    assert (said.code, bench.calls()) == (0, [])
    cell = "toytask:a:toy:toyq:hw/w4a4:0 (metrics.top1 is 99.5, but 60.0 in its artifact)"
    assert warning == f"left out 1 row contradicted by artifacts: {cell}; a run writes what these say"
    assert [row["metrics"]["top1"] for row in bench.rows().values()] == [60.0, 60.0]
    assert "99.5" not in said.out
    bench.run()
    assert len(caplog.messages) == 1


def test_a_row_that_a_hand_changed_is_no_number_in_the_table_of_a_run_of_other_cells(bench, caplog):
    bench.run()
    rows = file_of(bench).read_text()
    file_of(bench).write_text(rows.replace('"top1":60.0', '"top1":99.5', 1))
    said = bench.run("-k", ":1")
    assert (said.code, "60.00 (+0.00) [1]" in said.out, "99.50" in said.out) == (0, True, False)
    assert len(caplog.messages) == 1


def test_a_finished_cell_whose_measurement_is_damaged_is_measured_again(bench):
    bench.matrix("")
    bench.run()
    (bench.artifact("evaluate").folder / "manifest.json").write_text("{")
    bench.calls()
    assert (bench.run().code, "evaluate" in bench.calls(), bench.artifact("evaluate").content["samples"]) == (
        0,
        True,
        20,
    )


def test_lines_that_are_no_rows_go_with_a_warning_and_every_row_stays(bench, caplog):
    bench.run()
    rows = file_of(bench).read_text()
    first, second = rows.splitlines()
    file_of(bench).write_text(f"<<<<<<< HEAD\n{first}\n=======\n{second}\n>>>>>>> other\n{second[:100]}")
    assert (bench.run().code, file_of(bench).read_text()) == (0, rows)
    assert caplog.messages == [
        f"{file_of(bench)}: left out 4 lines without a row, which a run removes: line 1, line 3, line 5 and 1 other"
    ]


def test_a_row_that_finished_earlier_goes_and_the_later_one_stays(bench, caplog):
    bench.run()
    rows = file_of(bench).read_text()
    stale = json.loads(rows.splitlines()[0]) | {"finished": "2020-01-01T00:00:00Z", "metrics": {"top1": 1.0}}
    file_of(bench).write_text(rows + json.dumps(stale) + "\n")
    bench.calls()
    assert (bench.run().code, bench.calls(), file_of(bench).read_text(), len(caplog.messages)) == (0, [], rows, 1)


def test_rows_of_another_suite_stay_in_the_file_and_out_of_the_table(bench, caplog):
    bench.run()
    rows = file_of(bench).read_text()
    other = json.loads(rows.splitlines()[0]) | {"suite": "other", "metrics": {"top1": 1.0}}
    file_of(bench).write_text(json.dumps(other) + "\n" + rows)
    said = bench.run()
    lines = [json.loads(line) for line in file_of(bench).read_text().splitlines()]
    assert (said.code, [line["suite"] for line in lines], lines[2]["metrics"]) == (
        0,
        ["toysuite", "toysuite", "other"],
        {"top1": 1.0},
    )
    assert "60.00 ± 0.00" in said.out
    assert caplog.messages == [f"{file_of(bench)}: left out 1 row of other suites: other"]


def test_a_row_of_another_suite_is_no_finished_cell(bench):
    bench.run()
    file_of(bench).write_text(file_of(bench).read_text().replace('"suite":"toysuite"', '"suite":"other"'))
    assert (bench.run().code, len(file_of(bench).read_text().splitlines())) == (0, 4)


def test_rows_of_cells_that_an_override_takes_from_the_suite_stay_in_the_file_and_out_of_the_table(bench):
    bench.run()
    said = bench.run("--set", "matrix.0.seed=7")
    assert [row["seed"] for row in bench.rows().values()] == [7, 0, 1]
    assert (said.code, "- seed 7;" in said.out) == (0, True)
    bench.run()
    assert [row["seed"] for row in bench.rows().values()] == [0, 1]


ENDS = {"fails": ("raise ValueError('no')", 1), "is interrupted": ("raise KeyboardInterrupt", 130)}


@pytest.mark.parametrize("ends", ENDS)
def test_a_row_that_another_run_finished_while_this_one_could_not_is_kept(bench, ends):
    how, code = ENDS[ends]
    bench.add_plugin(f"""
class Sometimes(Toy):
    name = "sometimes"

    def generate(self, teacher, ctx):
        if (HERE / "now").exists():
            {how}
        return super().generate(teacher, ctx)

@zsqbench.hookimpl
def cell_finished(result):
    if (HERE / "now").exists():
        with (HERE / "results" / "toysuite.jsonl").open("a") as file:
            file.write((HERE / "now").read_text())
""")
    bench.matrix("generator: sometimes")
    bench.run()
    bench.write("now", json.dumps(bench.row() | {"finished": "2999-01-01T00:00:00Z"}) + "\n")
    file_of(bench).unlink()
    for kind in ("generate", "quantize", "evaluate"):
        shutil.rmtree(bench.home / "store" / kind)
    said = bench.run()
    assert (said.code, bench.row()["status"]) == (code, "done"), said.err
