import csv
import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from brief import parametrize_briefly

import zsqbench
from zsqbench.reports import cellpage
from zsqbench.reports.resultfile import SCHEMA
from zsqbench.reports.results import Result


def show(bench, cell=""):
    """The row of a cell, and the lines after it and after its calibration set."""
    row, of_set, after = show_all(bench, cell)
    assert not of_set or of_set[0].startswith("calibration set: ")
    return row, after


def show_all(bench, cell=""):
    """The row of a cell, the lines on its calibration set, and the lines after them."""
    said = bench.zsqbench("show", bench.file, cell, *bench.places())
    assert said.code == 0, said.err
    row = json.loads(bench.zsqbench("show", bench.file, cell, "--format", "json", *bench.places()).out)["row"]
    page = cellpage.render(Result(**row))
    assert said.out.startswith(f"{page}\n")
    lines = said.out.removeprefix(page).strip().splitlines()
    if not lines or not lines[0].startswith("calibration set: "):
        return row, [], lines
    ends = [place for place, line in enumerate(lines) if not line or line.startswith("Traceback")]
    return row, lines[: ends[0]], lines[ends[0] + (not lines[ends[0]]) :]


def test_show_tells_all_of_a_cell(ran):
    row, after = show(ran, "w4a4:1")
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


def test_show_prints_the_notes_of_a_generator(bench):
    bench.add_plugin("""
class Tells(Toy):
    name = "tells"

    def generate(self, teacher, ctx):
        ctx.note("no window was pasted twice")
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: tells")
    bench.run()
    said = bench.zsqbench("show", bench.file, "", *bench.places())
    assert "\n\nno window was pasted twice\n" in said.out
    shown = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    assert shown["generated"] == {"notes": ["no window was pasted twice"]}
    shutil.rmtree(bench.home)
    assert "pasted" not in bench.zsqbench("show", bench.file, "", *bench.places()).out


def test_show_says_that_the_artifact_is_not_here(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    shutil.rmtree(bench.home)
    _, after = show(bench)
    why = "this cell was run on another machine, or its artifact was removed"
    assert after == [f"the quantized network is not in {bench.home}: {why}"]


def test_show_says_that_the_artifact_is_damaged(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    manifest = bench.artifacts("quantize")[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"first_weight"', '"weight"'))
    said = bench.zsqbench("show", bench.file, "rtn", *bench.places())
    assert (said.code, "is damaged (the content of manifest.json has changed)" in said.err) == (2, True)


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
        "feature distance",
    ]
    assert [Path(line).name for line in lines[-2:]] == ["images.png", "diagnostics.png"]
    assert all(Path(line).is_file() for line in lines[-2:])


def test_show_as_json_has_all(bench):
    bench.matrix("quantizer: rtn")
    bench.run()
    said = bench.zsqbench("show", bench.file, "rtn", "--format", "json", *bench.places())
    shown = json.loads(said.out)
    assert (shown["row"]["status"], shown["calibration_set"]["set"]["images"]) == ("done", 4)
    assert set(shown["calibration_set"]["files"]) == {"diagnostics.png", "images.png"}
    assert [entry["name"] for entry in shown["quantized"]["tensors"]][:2] == ["0", "4"]


def test_show_as_json_says_what_is_not_there(bench):
    bench.matrix("generator: none, quantizer: datafree")
    bench.run()
    shutil.rmtree(bench.home)
    shown = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    assert (shown["calibration_set"], shown["quantized"]) == ({"absent": "this cell has no calibration set"}, None)


KEEPS = """
class Keeps(ToyQuantizer):
    name = "keeps"

    @property
    def keeps_epochs(self):
        return True

    def quantize(self, student, teacher, data, ctx):
        for epoch, favoured in ((1, 1), (2, 0), (3, 1)):
            student[-1].bias[favoured] += 100 * epoch ** 2
            ctx.keep_epoch(epoch, student)
"""


def test_show_tells_the_oracle_and_as_json_all_epochs(bench):
    bench.add_plugin(KEEPS)
    bench.matrix("quantizer: keeps")
    bench.run()
    _, after = show(bench)
    shown = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    found = "oracle: 100.00 top1 after epoch 2, the best of 3 kept epochs by the evaluated images themselves"
    assert after[-1] == f"{found}; the result is the last epoch's 0.00"
    assert [one["metrics"]["top1"] for one in shown["oracle"]["epochs"]] == [0.0, 100.0, 0.0]
    assert shown["oracle"]["best"] == shown["oracle"]["epochs"][1]
    shutil.rmtree(bench.home)
    gone = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    assert (gone["oracle"], gone["row"]["oracle"]["epoch"]) == (None, 2)


def test_show_tells_no_oracle_where_none_was_asked_for(bench):
    bench.matrix("")
    bench.run()
    shown = json.loads(bench.zsqbench("show", bench.file, "", "--format", "json", *bench.places()).out)
    assert ("oracle" in shown, [line for line in show(bench)[1] if "oracle" in line]) == (False, [])


def test_show_says_that_diagnostics_are_damaged(bench):
    bench.matrix("")
    bench.run()
    (bench.artifacts("diagnose")[0] / "images.png").write_bytes(b"another")
    _, (line,), _ = show_all(bench)
    assert line.startswith("calibration set: its diagnostics cannot be read: ")


def test_show_says_why_diagnosing_failed(bench, monkeypatch):
    bench.matrix("")
    monkeypatch.setattr("zsqbench.synthesis.diagnose", lambda *_: 1 / 0)
    said = bench.run()
    _, lines, _ = show_all(bench)
    assert lines[0].startswith("calibration set: diagnosing it failed; the next run tries again: ")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    warning = "warning: diagnose a toy seed 0 failed: ZeroDivisionError: division by zero; results do not depend on it"
    assert said.code == 0
    assert warning in said.err.splitlines()


def test_show_tells_the_traceback_of_a_failed_cell(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise ValueError('no luck')\n")
    bench.matrix("generator: bad")
    bench.run()
    said = bench.zsqbench("show", bench.file, "bad", "--results", bench.results)
    assert (said.code, said.out.rstrip().splitlines()[-1]) == (0, "ValueError: no luck")


def test_show_refuses_a_part_of_several_names(ran):
    said = ran.zsqbench("show", ran.file, "w4a4", "--results", ran.results)
    expected = "error: 'w4a4' is part of 2 names: toytask:a:toy:toyq:hw/w4a4:0, toytask:a:toy:toyq:hw/w4a4:1\n"
    assert (2, expected) == (said.code, said.err)


def test_show_refuses_an_unknown_cell_with_what_there_is(ran):
    said = ran.zsqbench("show", ran.file, "toytask:a:toy:toyq:hw/w4a4:2", "--results", ran.results)
    assert said.err.startswith(
        "error: unknown cell 'toytask:a:toy:toyq:hw/w4a4:2'; did you mean 'toytask:a:toy:toyq:hw/"
    )


def test_a_leaderboard_without_results_says_how_to_make_them(bench):
    said = bench.zsqbench("leaderboard", bench.file, "--results", bench.results)
    expected = f"error: there are no results of toysuite in {bench.results}; `zsqbench run {bench.file}` makes them\n"
    assert (2, expected) == (said.code, said.err)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_a_leaderboard_has_a_form_for_every_reader(ran, form):
    said = ran.zsqbench("leaderboard", ran.file, "--results", ran.results, "--format", form)
    assert (said.code, "toyq" in said.out) == (0, True), said.err


def test_results_are_the_rows_as_a_table_in_each_form(two):
    bench, rows = two
    places = ["results", bench.file, *bench.places()]
    printed = bench.zsqbench(*places)
    assert printed.code == 0, printed.err
    assert [row["cell"] for row in csv.DictReader(io.StringIO(printed.out))] == [row["cell"] for row in rows]
    frame = zsqbench.results(bench.file, results=bench.results, home=bench.home)
    listed = json.loads(bench.zsqbench(*places, "--format", "json", "-k", "w4a4:1").out)
    assert [list(row) for row in listed] == [list(frame.columns)]
    assert (listed[0]["cell"], listed[0]["metrics.top1"]) == (rows[1]["cell"], rows[1]["metrics"]["top1"])
    file = bench.write("rows.parquet", "an older file")
    said = bench.zsqbench(*places, "--format", "parquet", "-o", file)
    assert (said.code, said.out, said.err) == (0, "", f"{file}: 2 rows, {len(frame.columns)} columns\n")
    back = pd.read_parquet(file)
    assert list(back["metrics.top1"]) == list(frame["metrics.top1"])
    assert [json.loads(text) for text in back["notes"]] == list(frame["notes"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "parquet"], "parquet cannot be printed as text; name a file to write with -o FILE"),
        (["-o", "{folder}/none/rows.csv"], "cannot write {folder}/none/rows.csv: No such file or directory"),
        (["--results", "{folder}/none"], "there are no results of toysuite in {folder}/none; "),
    ],
)
def test_results_that_cannot_be_handed_out_are_one_line(two, options, expected):
    bench, _ = two
    said = bench.zsqbench("results", bench.file, *bench.places(), *(o.format(folder=bench.folder) for o in options))
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert said.err.startswith(f"error: {expected.format(folder=bench.folder)}")


@pytest.fixture
def old(bench):
    """A bench whose rows are of the first schema, which had no number, but for the last one."""
    bench.matrix("seed: [0, 1, 2]")
    bench.run()
    lines = (bench.results / "toysuite.jsonl").read_text().splitlines()
    changed = [{name: value for name, value in json.loads(line).items() if name != "schema"} for line in lines[:2]]
    (bench.results / "toysuite.jsonl").write_text("\n".join([*map(json.dumps, changed), lines[2]]) + "\n")
    return bench


@pytest.mark.parametrize("command", ["leaderboard", "show", "mlflow sync"])
def test_rows_of_another_schema_are_one_line_with_what_to_do(old, command):
    cell = ["w4a4:2"] if command == "show" else []
    places = ["--results", old.results, *(["--home", old.home] if command != "leaderboard" else [])]
    said = old.zsqbench(*command.split(), old.file, *cell, *places)
    expected = (
        f"error: {old.results}/toysuite.jsonl has rows of schema 1, and this zsqbench reads {SCHEMA}; run the suite "
        "again: it measures missing cells and replaces these rows\n"
    )
    assert (said.code, said.out, said.err) == (2, "", expected)


def test_a_run_measures_the_cells_of_rows_of_another_schema_again_and_replaces_them(old, caplog):
    shutil.rmtree(old.home / "store" / "evaluate")
    old.calls()
    said = old.run()
    (warning,) = caplog.records
    assert (said.code, old.calls()) == (0, ["load a", *["evaluate"] * 3]), said.err
    assert warning.getMessage().endswith("this zsqbench reads 2: their cells are measured again")
    assert [(row["schema"], row["seed"], row["status"]) for row in old.rows().values()] == [
        (SCHEMA, seed, "done") for seed in range(3)
    ]
    assert (old.run().code, len(caplog.records), old.calls()) == (0, 1, [])


def test_a_row_of_another_schema_goes_where_nothing_is_to_be_measured(old):
    old.run()
    path = old.results / "toysuite.jsonl"
    rows = path.read_text()
    row = {name: value for name, value in json.loads(rows.splitlines()[0]).items() if name != "schema"}
    path.write_text(json.dumps(row | {"cell": "a cell that the suite does not have"}) + "\n" + rows)
    assert (old.run().code, path.read_text()) == (0, rows)


def test_a_run_of_some_cells_leaves_no_row_of_another_schema(old):
    said = old.run("-k", "w4a4:0")
    assert (said.code, [row["seed"] for row in old.rows().values()]) == (0, [0, 2]), said.err
    assert old.zsqbench("leaderboard", old.file, "--results", old.results).code == 0


# --- rows that do not count -------------------------------------------------------------------------------------------


@pytest.fixture
def two(ran):
    """A bench with two rows, as plain data."""
    return ran, list(ran.rows().values())


def put(bench, *rows):
    """Let the file hold these rows, or lines."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (bench.results / "toysuite.jsonl").write_text("".join(f"{line}\n" for line in lines))


def means(bench, *options):
    """The lines of the leaderboard about the two cells."""
    said = bench.zsqbench("leaderboard", bench.file, *bench.places(), "--format", "json", *options)
    assert said.code == 0, said.err
    return [(record["mean"], record["seeds"], record["status"]) for record in json.loads(said.out)["records"]]


SEVEN = {"cell": "toytask:a:toy:toyq:hw/w4a4:7", "seed": 7, "metrics": {"top1": 99.0}}
NOT_COUNTED = {
    "an older row that stands last": ({"finished": "2020-01-01T00:00:00Z", "metrics": {"top1": 99.0}}, "w4a4:0"),
    "a row of before there were times": ({"finished": None, "metrics": {"top1": 99.0}}, "w4a4:0"),
    "a row of another suite": (SEVEN | {"suite": "other"}, "row of other suites: other"),
    "a row of a cell that is gone": (SEVEN, "row of cells that the suite does not have: toytask:a:toy:toyq:hw/w4a4:7"),
    "a row that is called otherwise": ({"cell": SEVEN["cell"]}, "row of cells that the suite does not have: toytask"),
    "a row that was cut off": ('{"schema":2,"suite":"toysuite",', "line without a row, which a run removes: line 3"),
    "the mark of a merge": ("<<<<<<< HEAD", "line without a row, which a run removes: line 3"),
}


@pytest.mark.parametrize("what", NOT_COUNTED)
def test_a_row_that_does_not_count_is_named_and_is_in_no_table(two, what, caplog):
    bench, rows = two
    change, named = NOT_COUNTED[what]
    put(bench, *rows, change if isinstance(change, str) else rows[0] | change)
    assert means(bench) == [(60.0, 2, "done")]
    (warning,) = caplog.messages
    assert warning.startswith(f"{bench.results}/toysuite.jsonl: left out 1 ")
    assert named in warning


def test_rows_of_a_suite_that_cannot_be_meant_are_shown_with_a_warning(two, caplog):
    bench, _ = two
    bench.file.write_text(bench.file.read_text().replace("seed: [0, 1]", "sed: 0"))
    assert means(bench) == [(60.0, 2, "done")]
    (warning,) = caplog.messages
    assert warning.startswith("all rows of the suite are taken, because its cells cannot be found: ")


def test_rows_are_shown_without_the_plugins_of_the_suite(two):
    bench, _ = two
    (bench.folder / "toy.py").unlink()
    assert means(bench) == [(60.0, 2, "done")]


def test_rows_of_an_overridden_suite_are_shown_with_the_same_override(bench, caplog):
    override = ("--set", "matrix.0.seed=[0, 1, 2]")
    assert bench.run(*override).code == 0
    assert means(bench, *override) == [(60.0, 3, "done")]
    assert not caplog.messages
    assert means(bench) == [(60.0, 2, "done")]
    assert "row of cells that the suite does not have: toytask:a:toy:toyq:hw/w4a4:2" in caplog.messages[0]


EDITED = {"metrics": {"top1": 99.5}, "float_metrics": {"top1": 12.5}, "correct": "////"}


@pytest.mark.parametrize("field", EDITED)
def test_a_row_that_a_hand_changed_is_shown_as_failed_with_both_values(two, field, caplog):
    bench, rows = two
    put(bench, rows[0] | {field: EDITED[field]}, rows[1])
    said = bench.zsqbench("leaderboard", bench.file, *bench.places())
    (warning,) = caplog.messages
    told = re.fullmatch(
        r"left out 1 row contradicted by artifacts: toytask:a:toy:toyq:hw/w4a4:0 \((.*)\); a run writes what these say",
        warning,
    )
    assert told
    assert told[1].startswith(f"{field if field == 'correct' else f'{field}.top1'} is {EDITED[field]}"[:12])
    assert "60.00 (+0.00) [1]" in said.out
    assert f"1 of 2 seeds failed: its row was changed after it was measured: {told[1]}; run the suite again" in said.out


def test_show_says_that_a_hand_changed_a_row(two, caplog):
    bench, rows = two
    put(bench, rows[0] | {"metrics": {"top1": 99.5}}, rows[1])
    said = bench.zsqbench("show", bench.file, "w4a4:0", "--format", "json", *bench.places())
    row = json.loads(said.out)["row"]
    assert (row["status"], row["metrics"], len(caplog.messages)) == ("failed", {}, 1)
    assert "metrics.top1 is 99.5, but 60.0 in its artifact" in row["reason"]


def test_a_row_is_taken_as_it_is_where_its_artifact_is_not_at_hand(two, caplog):
    bench, rows = two
    put(bench, rows[0] | {"metrics": {"top1": 99.5}}, rows[1])
    shutil.rmtree(bench.home)
    assert (means(bench), caplog.messages) == ([(79.75, 2, "done")], [])


def test_a_row_that_another_machine_made_is_taken_as_it_is(two, caplog):
    bench, rows = two
    elsewhere = rows[0] | {"metrics": {"top1": 55.0}, "seconds": dict.fromkeys(rows[0]["seconds"], 77.0)}
    put(bench, elsewhere, rows[1])
    assert (means(bench), caplog.messages) == ([(57.5, 2, "done")], [])


def test_a_row_whose_artifact_is_damaged_is_taken_as_it_is_with_a_warning(two, caplog):
    bench, rows = two
    (bench.home / "store" / "evaluate" / rows[0]["keys"]["evaluate"] / "manifest.json").write_text("{")
    assert means(bench) == [(60.0, 2, "done")]
    assert caplog.messages == [
        "could not compare 1 row with artifacts that are damaged: toytask:a:toy:toyq:hw/w4a4:0",
    ]


NO_NUMBERS = [("metrics", "NaN"), ("float_metrics", "Infinity"), ("metrics", "-Infinity"), ("seconds", "NaN")]


@pytest.mark.parametrize("command", ["leaderboard", "show", "plan", "run"])
@parametrize_briefly("field,number", NO_NUMBERS, 2)
def test_a_number_that_is_none_in_a_row_ends_no_command_in_a_traceback(two, command, field, number):
    bench, rows = two
    changed = rows[0] | {field: dict.fromkeys(rows[0][field], 7.125)}
    put(bench, json.dumps(changed).replace("7.125", number), rows[1])
    cell = ["w4a4:1"] if command == "show" else []
    without = ["--no-plugin", "mlflow"] if command in ("plan", "run") else []
    said = bench.zsqbench(command, bench.file, *cell, *bench.places(), *without)
    assert (said.code, "Traceback" in said.err) == (0, False), said.err
    if command == "run":
        assert means(bench) == [(60.0, 2, "done")]


def test_a_leaderboard_shows_figures_in_any_format_and_takes_names_alone(ran):
    arguments = ["leaderboard", ran.file, *ran.places(), "--columns"]
    said = ran.zsqbench(*arguments, "memory,seconds", "--format", "json")
    assert {"memory", "seconds"} <= json.loads(said.out)["records"][0].keys()
    assert ran.zsqbench(*arguments, "sise").err.startswith(
        "error: unknown column 'sise' in --columns; did you mean 'size'?"
    )
    assert "is not a list of names" in ran.zsqbench(*arguments, "memory,,").err
