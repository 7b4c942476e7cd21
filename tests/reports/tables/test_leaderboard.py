import csv
import io
import json
import re

import pytest
from rows import BELOW_CONTROL, CITATION, NAN_IMAGES, oracle, published, records, row

from zsqbench.reports.tables.leaderboard import leaderboard


def test_csv_says_what_is_below_noise_and_nothing_where_there_is_none():
    results = [row(95.0, generator="noise"), row(91.0), row(quantizer="squant", generator=None)]

    lines = csv.DictReader(io.StringIO(leaderboard(results, "csv")))

    assert [line["below_control"] for line in lines] == ["False", "True", ""]


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        ("md", r"\| +91\.00 \(-7\.00\) b \[1\] \|"),
        ("html", r">91\.00 \(-7\.00\) b \[1\]<"),
        ("latex", r"& 91\.00 \(-7\.00\) b \[1\]"),
    ],
)
def test_every_table_to_read_marks_what_is_below_noise_and_says_why(form, cell):
    text = leaderboard([row(95.0, generator="noise"), row(91.0)], form)

    assert re.search(cell, text)
    assert re.search(rf"(- |<li>|par )\[1\] {BELOW_CONTROL}", text)
    assert not re.search(r"\*\*|font-weight: bold|\\bfseries|bold:", text)


def test_a_json_table_lists_the_footnote_of_what_is_below_noise():
    text = leaderboard([row(95.0, generator="noise"), row(91.0)], "json")

    assert json.loads(text)["footnotes"] == [BELOW_CONTROL]


@pytest.mark.parametrize("form", ["md", "html", "latex", "json"])
def test_every_format_says_that_bold_beats_noise_and_is_shared(form):
    text = leaderboard([row(90.0, generator="noise"), row(91.0)], form)

    beats = "bold: in each column, the best data-free method that beats the negative control"
    assert f"{beats}, and all methods that cannot be told from the best; controls do not compete" in text


@pytest.mark.parametrize("form", ["md", "html", "latex", "json"])
def test_every_format_says_what_was_measured(form):
    text = leaderboard([row(seed=0), row(seed=1)], form)

    assert "digits: top-1 accuracy in percent, 1000 samples evaluated" in text
    assert "calibrated on 1024 images" in text
    assert re.search(r"mean (±|\$\\pm\$) sample standard deviation over seeds 0, 1", text)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_every_format_names_the_reason_of_a_failure(form):
    assert "images are NaN" in leaderboard([row(**NAN_IMAGES)], form)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_equal_results_make_equal_texts(form):
    assert leaderboard([row(), row(generator="dgh")], form) == leaderboard([row(), row(generator="dgh")], form)


def test_markdown_escapes_what_would_break_the_table():
    assert r"a\|b\<c>" in leaderboard([row(generator="a|b<c>", methods={})], "md")


def test_csv_has_a_record_for_each_method_and_column():
    results = [row(90.0, seed=0), row(92.0, seed=1), row(**NAN_IMAGES | {"generator": "dgh", "data": {}})]

    done, failed = csv.DictReader(io.StringIO(leaderboard(results, "csv")))

    assert [done[name] for name in ("generator", "quantizer", "scheme", "mean", "std", "seeds", "float", "drop")] == [
        "zeroq",
        "rtn",
        "hw/w4a4",
        "91.0",
        "1.4142",
        "2",
        "98.0",
        "7.0",
    ]
    assert [done["calibrated"], failed["calibrated"]] == ["1024", ""]
    assert [failed[name] for name in ("mean", "std", "drop", "status")] == ["", "", "", "failed"]


def test_json_keeps_numbers_as_numbers_and_what_is_missing_as_null():
    record = records([row(91.0)])[0]

    assert (record["mean"], record["std"], record["drop"], record["status"]) == (91.0, None, 7.0, "done")


def test_latex_is_a_booktabs_table_whose_caption_says_scheme_seeds_and_what_is_bold():
    text = leaderboard([row(seed=0), row(seed=1)], "latex")

    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}")
    assert text.endswith("\\end{table}")
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert re.search(
        r"\\caption\{Suite demo: top-1 .* at hw/w4a4; .* over seeds 0, 1; .*; bold: in each column, the best .*\.\}",
        text,
    )


def test_latex_escapes_labels_and_reasons():
    results = [row(generator="dgh_short", methods={}), row(**NAN_IMAGES | {"reason": r"100% of C:\x & <y> {z} ~ ^"})]

    text = leaderboard(results, "latex")

    assert r"dgh\_short" in text
    assert (
        r"100\% of C:\textbackslash{}x \& \textless{}y\textgreater{} \{z\} \textasciitilde{} \textasciicircum{}" in text
    )


def test_latex_marks_the_best_in_bold():
    assert re.search(r"zeroq & rtn & \\bfseries 91\.00", leaderboard([row()], "latex"))


def test_every_row_of_the_latex_table_has_as_many_cells_as_columns():
    body = leaderboard([row(), row(generator="dgh", scheme="hw/w8a8")], "latex").partition(r"\midrule")[2]

    assert {line.count("&") for line in body.partition(r"\bottomrule")[0].strip().splitlines()} == {3}


def test_html_is_standalone_and_escaped():
    text = leaderboard(
        [row(generator="<b>", methods={}), row(**NAN_IMAGES | {"reason": "<script>alert()</script>"})], "html"
    )

    assert text.startswith("<!DOCTYPE html>")
    assert "&lt;b&gt;" in text
    assert not re.search(r"<script|https?:|<link|<b>", text)


def test_html_makes_cells_without_a_number_stand_out():
    assert re.search(r'class="[^"]*missing"\s*>failed \[1\]', leaderboard([row(**NAN_IMAGES)], "html"))


def test_records_have_both_beside_the_result_and_none_of_their_own():
    results = [row(90.0, oracle=oracle(92.0), published=published(93.0, std=0.5)), row(generator="dgh")]

    with_both, without = records(results)

    assert [with_both[name] for name in ("mean", "oracle", "oracle_std", "published", "published_std")] == [
        90.0,
        92.0,
        None,
        93.0,
        0.5,
    ]
    assert [without[name] for name in ("oracle", "published")] == [None, None]
    lines = list(csv.DictReader(io.StringIO(leaderboard(results, "csv"))))
    assert [(line["oracle"], line["published_std"]) for line in lines] == [("92.0", "0.5"), ("", "")]


@pytest.mark.parametrize("form", ["md", "html", "latex"])
def test_every_table_to_read_marks_both_and_says_what_they_are(form):
    text = leaderboard([row(90.0, oracle=oracle(92.0), published=published(93.0))], form)

    assert "hw/w4a4 (oracle)" in text
    assert "hw/w4a4 (published)" in text
    assert "chosen on the evaluated images themselves" in text
    assert CITATION in text
