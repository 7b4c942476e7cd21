"""Some rows of a file count for a suite, and a warning names the others."""

from pathlib import Path

from rows import result

from zsqbench.reports.resultfile import Contents
from zsqbench.reports.suiterows import SuiteRows, named


def of(contents):
    return SuiteRows.of(contents, "s", lambda row: row.quantizer == "q")


def test_rows_are_sorted_by_what_they_are_to_the_suite():
    own, gone, foreign = result("a"), result("b", quantizer="other"), result("a", suite="t")
    assert of(Contents([own, gone, foreign])) == SuiteRows([own], [gone], [foreign])


def test_what_does_not_count_is_counted_and_named_in_one_line_for_each_kind(caplog):
    gone = [result(str(number), quantizer="other") for number in range(5)]
    contents = Contents([result(), *gone, result(suite="t")], older=[result("a"), result("a")], unreadable=[3, 17])
    of(contents).warn(Path("s.jsonl"), contents)
    assert [record.getMessage() for record in caplog.records] == [
        "s.jsonl: left out 1 row of other suites: t",
        "s.jsonl: left out 5 rows of cells that the suite does not have: 0, 1, 2 and 2 others",
        "s.jsonl: left out 2 rows of cells that have one which finished later: a",
        "s.jsonl: left out 2 lines without a row, which a run removes: line 3, line 17",
    ]


def test_nothing_is_said_of_a_file_whose_rows_all_count(caplog):
    of(Contents([result()])).warn(Path("s.jsonl"), Contents([result()]))
    assert not caplog.records


def test_names_are_few_and_different():
    assert [named("ab"), named("aabb"), named("abcd")] == ["a, b", "a, b", "a, b, c and 1 other"]
