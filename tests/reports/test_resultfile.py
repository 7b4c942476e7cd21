import errno
import fcntl
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from rows import result

from zsqbench.errors import ZSQBenchError
from zsqbench.reports import resultfile
from zsqbench.reports.resultfile import SCHEMA, Contents, ResultFile


class Forgetful(ResultFile):
    """A file that reads what it wrote, as another process does."""

    def append(self, result):
        super().append(result)
        self._appended.clear()


@pytest.fixture
def rows(tmp_path):
    return Forgetful(tmp_path / "results" / "s.jsonl")


def cells(rows):
    return [row.cell for row in rows.contents().rows]


def test_a_file_that_is_not_there_has_no_rows(rows):
    assert rows.contents() == Contents()


def test_a_row_is_read_as_it_was_written(rows):
    row = result(methods={"task": {"method": "t", "options": {"x": [1, None]}}}, seconds={"generate": 0.5})
    rows.append(row)
    assert rows.contents() == Contents([row])


def test_rows_that_were_added_here_are_not_held_a_second_time(tmp_path):
    rows, reader = (ResultFile(tmp_path / "s.jsonl") for _ in range(2))
    odd = result("odd", metrics={"top1": float("nan")})
    row = result(methods={"task": {"method": "t", "options": {"x": [1, None]}}}, seconds={"generate": 0.5})
    for each in (row, odd):
        rows.append(each)
    reader.append(result("other"))
    assert rows.contents().rows[0] is row
    assert rows.contents() == reader.contents()


def test_a_row_that_was_added_twice_is_there_once_after_rewriting(tmp_path):
    rows = ResultFile(tmp_path / "s.jsonl")
    for _ in range(2):
        rows.append(result())
    assert len(rows.contents().older) == 1
    rows.rewrite(lambda contents: contents.rows)
    assert len(rows.path.read_text().splitlines()) == 1


def test_a_file_is_read_again_where_somebody_wrote_to_it_alone(rows):
    rows.append(result())
    first = rows.contents()
    assert rows.contents() is first
    ResultFile(rows.path).append(result("other"))
    assert cells(rows) == [result().cell, "other"]
    ResultFile(rows.path).rewrite(lambda contents: contents.rows[:1])
    assert cells(rows) == [result().cell]
    rows.path.unlink()
    assert cells(rows) == []


def test_the_last_row_of_a_cell_counts_where_none_says_when_it_finished(rows):
    for row in (result(status="failed"), result("other"), result()):
        rows.append(row)
    assert rows.contents() == Contents([result(), result("other")], older=[result(status="failed")])


NINE, TEN = (f"2026-01-02T{hour}:00:00Z" for hour in ("09", "10"))


def test_the_row_that_finished_last_counts_wherever_it_stands(rows):
    latest, earlier, before_that = (
        result(finished=when, metrics={"top1": n}) for n, when in enumerate((TEN, NINE, None))
    )
    for row in (latest, before_that, earlier):
        rows.append(row)
    assert rows.contents() == Contents([latest], older=[before_that, earlier])


def test_a_row_of_another_suite_is_another_row(rows):
    for row in (result(), result(suite="other")):
        rows.append(row)
    assert rows.contents() == Contents([result(), result(suite="other")])
    assert list(rows.read()) == [("s", "cell"), ("other", "cell")]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, "done"),
        ({"keys": {"evaluate": "k"}}, "done"),
        ({"keys": {"evaluate": "x"}}, "interrupted"),
        ({"definition": "x"}, "interrupted"),
    ],
)
def test_an_interruption_undoes_nothing_that_is_done_unless_the_cell_has_changed(rows, changes, counts):
    rows.append(result(finished=NINE, keys={"evaluate": "k"}))
    rows.append(result(finished=TEN, status="interrupted", **changes))
    assert [row.status for row in rows.contents().rows] == [counts]


def test_a_row_that_was_cut_off_is_left_out(rows):
    rows.append(result("whole"))
    rows.append(result("cut"))
    rows.path.write_bytes(rows.path.read_bytes()[:-20])
    assert (cells(rows), rows.contents().unreadable) == (["whole"], [2])


def test_a_row_that_was_cut_off_inside_a_letter_is_left_out(rows):
    rows.append(result("whole"))
    rows.append(result("cut", reason="größer"))
    content = rows.path.read_bytes()
    rows.path.write_bytes(content[: content.index("ö".encode()) + 1])
    assert cells(rows) == ["whole"]


def test_a_row_after_one_that_was_cut_off_is_whole(rows):
    rows.append(result("cut"))
    rows.path.write_bytes(rows.path.read_bytes()[:-20])
    rows.append(result("next"))
    assert cells(rows) == ["next"]


@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\u2029b", "a\x0cb", "a\nb", "a\x1eb"])
def test_a_row_with_an_odd_line_break_in_it_is_one_row(rows, odd):
    rows.append(result(traceback=odd))
    assert [odd] == [row.traceback for row in rows.contents().rows]


NOT_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", '"NaN"': "nan"}
MEASURED = [
    ("metrics", {"top1": 7.5}),
    ("float_metrics", {"top1": 7.5}),
    ("oracle", {"epoch": 1, "metrics": {"top1": 7.5}}),
]


@pytest.mark.parametrize(
    ("given", "read"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), ('"NaN"', "nan")]
)
@pytest.mark.parametrize(("field", "value"), MEASURED)
def test_a_row_with_a_metric_that_is_no_number_is_that_of_a_failed_cell(rows, field, value, given, read):
    rows.append(result(**{field: value}))
    rows.path.write_text(rows.path.read_text().replace("7.5", given))
    (row,) = rows.contents().rows
    name = "oracle.metrics.top1" if field == "oracle" else f"{field}.top1"
    assert (row.status, row.reason) == ("failed", f"{name} is {read}, which is not a valid measurement")
    assert (row.value, row.float_value, row.oracle_value) == (None, None, None)


@pytest.mark.parametrize(
    "changes", [{"seconds": {"generate": 7.5}}, {"published": {"value": 7.5}}, {"data": {"calibrated": 7.5}}]
)
def test_a_row_with_another_field_that_is_no_number_is_none(rows, changes):
    rows.append(result("whole"))
    rows.append(result(**changes | {"data": {}}))
    line = json.loads(rows.path.read_text().splitlines()[1]) | changes
    rows.path.write_text(rows.path.read_text().splitlines()[0] + "\n" + json.dumps(line).replace("7.5", "NaN"))
    assert (cells(rows), rows.contents().unreadable) == (["whole"], [2])


def test_a_row_with_text_that_is_no_unicode_is_kept(rows):
    rows.append(result(reason="cannot read caf\udce9.png"))
    assert cells(rows) == ["cell"]


def test_a_row_with_keys_of_a_later_version_is_read(rows):
    rows.append(result())
    row = json.loads(rows.path.read_text())
    rows.path.write_text(json.dumps(row | {"new_in_2030": 1}) + "\n")
    assert rows.contents() == Contents([result()])


def test_a_row_is_read_however_it_was_written_by_others(rows):
    rows.append(result())
    row = json.loads(rows.path.read_text())
    rows.path.write_text(json.dumps(dict(reversed(row.items()))) + "\n")
    assert rows.contents() == Contents([result()])


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
        f"{rows.path} has rows of schema {schema}, and this zsqbench reads {SCHEMA}; run the suite again: it "
        "measures missing cells and replaces these rows"
    )
    with pytest.raises(ZSQBenchError) as error:
        rows.read()
    assert str(error.value) == expected


def test_rows_of_another_schema_are_told_apart(rows):
    rows.append(result("new"))
    later = json.dumps(json.loads(OLD) | {"schema": 7})
    rows.path.write_text(f"{OLD}{rows.path.read_text()}{OLD}{later}\n")
    assert rows.contents() == Contents([result("new")], schemas=[1, 7])


@pytest.mark.parametrize("line", ["[1]", "null", '"text"', '{"schema":"2"}', '{"cell":"c"}', OLD[:-20], "\x00"])
def test_a_line_that_is_no_row_is_told_by_its_number(rows, line):
    rows.append(result())
    rows.path.write_text(f"\n{line}\n{rows.path.read_text()}\n")
    assert rows.contents() == Contents([result()], unreadable=[2])


def test_a_file_that_an_editor_gave_a_byte_order_mark_has_all_its_rows(rows):
    rows.append(result())
    rows.path.write_text(rows.path.read_text(), encoding="utf-8-sig")
    assert rows.contents() == Contents([result()])


def test_each_row_is_one_line_of_json(rows):
    rows.append(result("a", traceback="two\nlines"))
    rows.append(result("b"))
    assert [json.loads(line)["cell"] for line in rows.path.read_text().split("\n")[:-1]] == ["a", "b"]


def test_a_rewritten_file_holds_these_rows_in_this_order(rows):
    for cell in "abc":
        rows.append(result(cell))
    rows.rewrite(lambda contents: [contents.rows[2], contents.rows[0]])
    assert [json.loads(line)["cell"] for line in rows.path.read_text().splitlines()] == ["c", "a"]


def test_a_file_that_holds_what_it_should_is_not_written(rows):
    rows.append(result())
    before = rows.path.stat()
    assert rows.rewrite(lambda contents: contents.rows) == [result()]
    assert rows.path.stat() == before


@pytest.mark.parametrize("line", ["no row", OLD.strip(), "older"])
def test_a_rewritten_file_holds_nothing_that_does_not_count(rows, line):
    rows.append(result(status="failed"))
    rows.append(result())
    rows.path.write_text(
        rows.path.read_text().partition("\n")[2] + (rows.path.read_text() if line == "older" else line)
    )
    rows.rewrite(lambda contents: contents.rows)
    assert rows.contents() == Contents([result()])


def test_a_row_that_another_run_adds_while_the_file_is_rewritten_is_kept(rows):
    rows.append(result("a"))
    added = []

    def arrange(contents):
        if not added:
            added.append(True)
            rows.append(result("b"))  # after the first look at the file
        return contents.rows[::-1]

    rows.rewrite(arrange)
    assert sorted(cells(rows)) == ["a", "b"]


APPENDS = """
from pathlib import Path
from zsqbench.reports.resultfile import ResultFile
rows = ResultFile(Path({path!r}))
(first,) = rows.contents().rows[:1]
for number in range(30):
    rows.append(first.model_copy(update={{"cell": f"{name}{{number}}"}}))
    rows.rewrite(lambda contents: sorted(contents.rows, key=lambda row: row.cell, reverse=bool(number % 2)))
"""


def test_processes_that_write_at_once_lose_no_row_of_each_other(rows, python):
    rows.append(result("first"))
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda name: python(APPENDS.format(path=str(rows.path), name=name)), "ab"))
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 2
    assert set(cells(rows)) == {"first", *(f"{name}{number}" for name in "ab" for number in range(30))}


def test_a_writer_that_was_stopped_holds_up_no_other_for_ever(rows, monkeypatch):
    monkeypatch.setattr(resultfile, "PATIENCE", 0.05)
    rows.append(result("a"))
    with rows.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows.append(result("b"))
    assert cells(rows) == ["a", "b"]


def test_a_file_system_without_locks_is_written_to_all_the_same(rows, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    rows.append(result("a"))
    assert cells(rows) == ["a"]
