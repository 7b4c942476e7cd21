import json

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.results import SCHEMA, Result, ResultFile, environment


def result(cell="cell", **changes):
    values = {
        "suite": "s",
        "cell": cell,
        "definition": "d",
        "task": "t",
        "model": "m",
        "generator": None,
        "quantizer": "q",
        "scheme": "hw/w4a4",
        "seed": None,
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": 50.0},
        "float_metrics": {"top1": 60.0},
    }
    return Result(**values | changes)


@pytest.fixture
def rows(tmp_path):
    return ResultFile(tmp_path / "results" / "s.jsonl")


def test_a_file_that_is_not_there_has_no_rows(rows):
    assert rows.read() == {}


def test_a_row_is_read_as_it_was_written(rows):
    row = result(methods={"task": {"method": "t", "options": {"x": [1, None]}}}, seconds={"generate": 0.5})
    rows.append(row)
    assert {"cell": row} == rows.read()


def test_the_last_row_of_a_cell_counts(rows):
    rows.append(result(status="failed"))
    rows.append(result("other"))
    rows.append(result())
    assert [(cell, row.status) for cell, row in rows.read().items()] == [("cell", "done"), ("other", "done")]


def test_a_row_that_was_cut_off_is_left_out(rows):
    rows.append(result("whole"))
    rows.append(result("cut"))
    rows.path.write_bytes(rows.path.read_bytes()[:-20])
    assert list(rows.read()) == ["whole"]


def test_a_row_that_was_cut_off_inside_a_letter_is_left_out(rows):
    rows.append(result("whole"))
    rows.append(result("cut", reason="größer"))
    content = rows.path.read_bytes()
    rows.path.write_bytes(content[: content.index("ö".encode()) + 1])
    assert list(rows.read()) == ["whole"]


def test_a_row_after_one_that_was_cut_off_is_whole(rows):
    rows.append(result("cut"))
    rows.path.write_bytes(rows.path.read_bytes()[:-20])
    rows.append(result("next"))
    assert list(rows.read()) == ["next"]


@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\u2029b", "a\x0cb", "a\nb", "a\x1eb"])
def test_a_row_with_an_odd_line_break_in_it_is_one_row(rows, odd):
    rows.append(result(traceback=odd))
    assert [odd] == [row.traceback for row in rows.read().values()]


def test_a_row_with_a_metric_that_is_no_number_is_kept(rows):
    rows.append(result(metrics={"top1": float("nan"), "loss": float("inf")}))
    assert list(rows.read()) == ["cell"]


def test_a_row_with_text_that_is_no_unicode_is_kept(rows):
    rows.append(result(reason="cannot read caf\udce9.png"))
    assert list(rows.read()) == ["cell"]


def test_a_row_with_keys_of_a_later_version_is_read(rows):
    rows.append(result())
    row = json.loads(rows.path.read_text())
    rows.path.write_text(json.dumps(row | {"new_in_2030": 1}) + "\n")
    assert {"cell": result()} == rows.read()


def test_a_row_is_read_however_it_was_written_by_others(rows):
    rows.append(result())
    row = json.loads(rows.path.read_text())
    rows.path.write_text(json.dumps(dict(reversed(row.items()))) + "\n")
    assert rows.read() == {"cell": result()}


OLD = (
    '{"suite":"s","cell":"cell","definition":"d","task":"t","model":"m","generator":null,"quantizer":"q","scheme":"hw",'
)
OLD += '"seed":null,"status":"done","metric":"top1","metrics":{"top1":50.0},"data":{"evaluated":900,"calibrated":64}}\n'
"""A row of the first schema, which had no number."""


@pytest.mark.parametrize(("changes", "schema"), [({}, 1), ({"schema": 1}, 1), ({"schema": 3}, 3)])
def test_rows_of_another_schema_are_one_line_with_what_to_do(rows, changes, schema):
    rows.append(result("new"))
    rows.path.write_text(rows.path.read_text() + json.dumps(json.loads(OLD) | changes) + "\n")
    expected = (
        f"{rows.path} has rows of schema {schema}, and this zsqbench reads {SCHEMA}; run the suite again, which "
        "measures what is missing and replaces them"
    )
    with pytest.raises(ZSQBenchError) as error:
        rows.read()
    assert str(error.value) == expected


def test_rows_of_another_schema_are_told_apart(rows):
    rows.append(result("new"))
    later = json.dumps(json.loads(OLD) | {"schema": 7})
    rows.path.write_text(f"{OLD}{rows.path.read_text()}{OLD}{later}\n")
    assert rows.read_all() == ({"new": result("new")}, [1, 7])


@pytest.mark.parametrize("line", ["[1]", "null", '"text"', '{"schema":"2"}', '{"cell":"c"}', OLD[:-20], "\x00"])
def test_a_line_that_is_no_row_has_no_schema(rows, line):
    rows.append(result())
    rows.path.write_text(rows.path.read_text() + line + "\n")
    assert list(rows.read()) == ["cell"]


def test_each_row_is_one_line_of_json(rows):
    rows.append(result("a", traceback="two\nlines"))
    rows.append(result("b"))
    assert [json.loads(line)["cell"] for line in rows.path.read_text().split("\n")[:-1]] == ["a", "b"]


def test_a_rewritten_file_holds_these_rows_in_this_order(rows):
    for cell in "abc":
        rows.append(result(cell))
    rows.rewrite([result("c"), result("a")])
    assert [json.loads(line)["cell"] for line in rows.path.read_text().splitlines()] == ["c", "a"]


def test_the_drop_is_what_is_lost_from_float():
    assert result().drop == 10.0


def test_there_is_no_drop_without_a_value():
    assert (result(metrics={}).drop, result(float_metrics={}).drop) == (None, None)


def test_a_metric_that_was_not_measured_has_no_value():
    assert (result(metrics={"other": 1.0}).value, result(metric=None).value) == (None, None)


def test_a_status_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="status"):
        result(status="perhaps")


def test_the_environment_names_versions_and_machine():
    assert {"zsqbench", "torch", "torchvision", "numpy", "python", "platform", "cores"} <= set(environment())


def test_the_oracle_has_the_value_of_the_same_metric():
    oracle = {"epoch": 3, "metrics": {"top1": 55.0}, "of": 4}
    assert (result(oracle=oracle).oracle_value, result().oracle_value) == (55.0, None)
    assert result(oracle=oracle, metric=None).oracle_value is None
