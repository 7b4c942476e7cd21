import csv
import io
import json
import re

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.leaderboard import leaderboard
from zsqbench.reports.results import Result
from zsqbench.reports.tabulation import build_table

BELOW_CONTROL = "below the negative control"
NAN_IMAGES = {"status": "failed", "metrics": {}, "reason": "generate: images are NaN"}


def row(value=91.0, **changes):
    generator = changes.get("generator", "zeroq")
    fields = {
        "suite": "demo",
        "cell": "some cell",
        "definition": "some hash",
        "task": "digits",
        "model": "resnet20",
        "generator": generator,
        "quantizer": "rtn",
        "scheme": "hw/w4a4",
        "seed": 0,
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": value},
        "float_metrics": {"top1": 98.0},
        "methods": {"generator": {"method": generator, "changed": {}}, "quantizer": {"method": "rtn", "changed": {}}},
        "data": {"evaluated": 902, "calibrated": 1024},
    }
    return Result(**fields | changes)


def markdown_cells(results):
    """The table as lists of texts: heads, then rows."""
    lines = [line for line in leaderboard(results, "md").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def records(results):
    return json.loads(leaderboard(results, "json"))["records"]


def below_control(results):
    return [record["below_control"] for record in records(results)]


def with_quantizer(method, **changed):
    """The method descriptions of a row whose images are noise."""
    return {"generator": {"method": "noise", "changed": {}}, "quantizer": {"method": method, "changed": changed}}


def test_no_results_say_to_run_the_suite_first():
    with pytest.raises(ZSQBenchError, match="run the suite first"):
        leaderboard([], "md")


def test_a_cell_is_mean_and_sample_deviation_over_seeds_and_the_difference_from_float():
    assert markdown_cells([row(90.0, seed=0), row(92.0, seed=1)])[2] == ["zeroq", "rtn", "**91.00 ± 1.41 (-7.00)**"]


def test_a_single_seed_has_no_deviation():
    assert markdown_cells([row(91.0)])[2][-1] == "**91.00 (-7.00)**"


def test_an_exact_reproduction_of_float_has_no_negative_zero():
    assert markdown_cells([row(98.0)])[2][-1] == "**98.00 (+0.00)**"


def test_a_mean_over_the_seeds_that_survived_is_not_bold():
    survivor = [row(95.0, seed=0), row(seed=1, **NAN_IMAGES)]
    assert "**95.00" not in leaderboard([*survivor, row(90.0, generator="dgh")], "md")


def test_the_first_row_is_the_float_network():
    assert markdown_cells([row()])[1] == ["float", "", "98.00"]


def test_columns_are_task_model_and_scheme_in_the_order_of_the_results():
    heads = markdown_cells([row(scheme="hw/w8a8"), row(scheme="hw/w4a4"), row(model="vgg", scheme="hw/w8a8")])[0]

    assert heads == [
        "generator",
        "quantizer",
        "digits resnet20 hw/w8a8",
        "digits resnet20 hw/w4a4",
        "digits vgg hw/w8a8",
    ]


def test_rows_are_in_the_order_of_the_results():
    assert [line[0] for line in markdown_cells([row(generator="z"), row(generator="a")])[2:]] == ["z", "a"]


def test_a_cell_that_the_suite_does_not_have_is_empty():
    assert markdown_cells([row(), row(generator="dgh", scheme="hw/w8a8")])[2][-1] == ""


def test_the_best_data_free_method_is_bold_and_controls_do_not_compete():
    results = [
        row(91.0),
        row(90.0, generator="dgh"),
        row(99.0, generator="real", data_free=False),
        row(99.0, generator="noise", quantizer="ste"),
    ]

    assert [line[-1].startswith("**") for line in markdown_cells(results)[1:]] == [False, True, False, False, False]


def test_methods_that_look_equal_are_both_best():
    assert [record["best"] for record in records([row(91.001), row(91.004, generator="dgh")])] == [True, True]


def test_a_method_below_noise_is_not_bold_and_has_a_footnote():
    results = [row(95.0, generator="noise"), row(91.0), row(96.0, generator="dgh")]

    assert [line[-1] for line in markdown_cells(results)[2:]] == [
        "95.00 (-3.00)",
        "91.00 (-7.00) [1]",
        "**96.00 (-2.00)**",
    ]


def test_nothing_is_bold_in_a_column_where_noise_is_ahead():
    results = [row(95.0, generator="noise"), row(91.0), row(scheme="hw/w8a8")]

    assert [record["best"] for record in records(results)] == [False, False, True]


def test_the_best_above_its_own_noise_is_bold_where_a_higher_number_is_below_its_own():
    results = [
        row(95.0, generator="noise"),
        row(94.0),
        row(80.0, generator="noise", quantizer="ste", methods=with_quantizer("ste")),
        row(90.0, quantizer="ste", methods={"quantizer": {"method": "ste", "changed": {}}}),
    ]

    assert [record["best"] for record in records(results)] == [False, False, False, True]


def test_all_that_is_below_noise_shares_one_footnote_after_the_reasons():
    noise = [row(95.0, generator="noise"), row(95.0, generator="noise", scheme="hw/w8a8")]
    results = [*noise, row(91.0), row(scheme="hw/w8a8"), row(92.0, generator="dgh"), row(**NAN_IMAGES, seed=1)]

    text = leaderboard(results, "md")

    assert [line[2:] for line in markdown_cells(results)[3:]] == [
        ["91.00 (-7.00) [1] [2]", "91.00 (-7.00) [2]"],
        ["92.00 (-6.00) [2]", ""],
    ]
    assert text.endswith(f"- [1] 1 of 2 seeds failed: generate: images are NaN\n- [2] {BELOW_CONTROL}")


def test_what_looks_equal_to_noise_is_not_below_it():
    assert below_control([row(91.004, generator="noise"), row(91.001)]) == [False, False]


@pytest.mark.parametrize(
    "noise",
    [
        {"quantizer": "ste"},
        {"methods": with_quantizer("rtn", clip="minmax")},
        {"settings": {"precision": "bf16"}},
        {"scheme": "hw/w8a8"},
        {"model": "vgg"},
        {"task": "cifar10"},
    ],
)
def test_noise_is_the_control_of_nothing_but_the_same_quantizer_options_settings_and_column(noise):
    assert below_control([row(generator="dgh"), row(99.0, generator="noise", **noise)])[0] is None


def test_noise_of_any_name_and_budget_is_a_control_and_the_best_counts():
    few = {"generator": {"method": "noise", "changed": {"images": 8}}, "quantizer": {"method": "rtn", "changed": {}}}
    results = [row(95.0, generator="noise"), row(80.0, generator="few", methods=few), row(91.0)]

    assert below_control(results) == [False, False, True]


@pytest.mark.parametrize("failed", ["noise", "zeroq"])
def test_what_has_no_number_is_not_compared_to_noise(failed):
    results = [row(**({"generator": name} | (NAN_IMAGES if name == failed else {}))) for name in ("noise", "zeroq")]

    assert below_control(results)[1] is None


def test_real_images_below_noise_have_the_footnote_too():
    results = [row(95.0, generator="noise"), row(generator="real", data_free=False)]

    assert markdown_cells(results)[3][-1] == "91.00 (-7.00) [1]"


def test_csv_says_what_is_below_noise_and_nothing_where_there_is_none():
    results = [row(95.0, generator="noise"), row(91.0), row(quantizer="squant", generator=None)]

    lines = csv.DictReader(io.StringIO(leaderboard(results, "csv")))

    assert [line["below_control"] for line in lines] == ["False", "True", ""]


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        ("md", r"\| +91\.00 \(-7\.00\) \[1\] \|"),
        ("html", r">91\.00 \(-7\.00\) \[1\]<"),
        ("latex", r"& 91\.00 \(-7\.00\) \[1\]"),
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
def test_every_format_says_that_bold_is_not_below_noise(form):
    text = leaderboard([row(90.0, generator="noise"), row(91.0)], form)

    assert f"bold: the best data-free method of a column that is not {BELOW_CONTROL}; controls do not compete" in text


def test_the_note_on_bold_is_silent_about_noise_where_there_is_none():
    assert (
        "\n- bold: the best data-free method of a column; controls do not compete\n"
        in leaderboard([row()], "md") + "\n"
    )


def test_nothing_is_best_where_nothing_is_quantized():
    assert not records([row(98.0, quantizer="fp32", scheme="float")])[0]["best"]


def test_controls_are_marked_in_their_row():
    labels = [line[0] for line in markdown_cells([row(generator="noise"), row(generator="real", data_free=False)])[2:]]

    assert labels == ["noise (negative control)", "real (real data, not data-free)"]


def test_a_control_is_known_by_its_method_whatever_the_suite_calls_it():
    methods = {"generator": {"method": "noise", "changed": {"images": 64}}}

    assert markdown_cells([row(generator="few", methods=methods)])[2][0] == "few (noise, 64 images, negative control)"


def test_the_float_quantizer_is_marked_as_a_control_whatever_the_suite_calls_it():
    changes = {"generator": None, "quantizer": "whole", "scheme": "float"}
    results = [row(98.0, methods={"quantizer": {"method": "fp32", "changed": {}}}, **changes)]

    assert markdown_cells(results)[2][:2] == ["none", "whole (fp32, float control)"]
    assert "- float control: nothing is quantized, so it must reproduce the float network" in leaderboard(results, "md")
    assert records(results)[0]["control"] == "float control"


def test_options_that_are_not_default_are_named_in_the_row():
    changed = {"images": 128, "lr": 0.1, "preset": "paper", "flip": False, "smooth_loss": True, "betas": [0.5, 0.9]}
    methods = {"generator": {"method": "dgh", "changed": changed}}

    label = markdown_cells([row(generator="dgh", methods=methods)])[2][0]

    assert label == "dgh (128 images, lr 0.1, preset paper, no flip, smooth loss, betas [0.5, 0.9])"


def test_an_input_file_is_named_without_the_folder_that_differs_between_machines():
    methods = {"generator": {"method": "file", "changed": {"path": "/home/me/images.safetensors"}}}

    assert markdown_cells([row(generator="file", methods=methods)])[2][0] == "file (path images.safetensors)"


def test_one_label_with_two_budgets_makes_two_rows():
    short = {"generator": {"method": "zeroq", "changed": {"images": 8}}}

    assert [line[0] for line in markdown_cells([row(), row(methods=short)])[2:]] == ["zeroq", "zeroq (8 images)"]


def test_what_settings_cost_is_a_mean_over_distinct_steps():
    def timed(seconds, key, **changes):
        return row(seconds={"generate": seconds, "quantize": 1.0}, keys={"generate": key, "quantize": key}, **changes)

    fast = {"settings": {"precision": "bf16"}}
    rows = [timed(4.0, "a"), timed(4.0, "a", scheme="hw/w8a8"), timed(8.0, "b", model="b"), timed(3.0, "c", **fast)]
    notes = leaderboard(rows, "md")
    assert "mean seconds to generate with zeroq: default settings 6.00; precision bf16 3.00 (0.50 x)" in notes
    assert "mean seconds to quantize with rtn: default settings 1.00; precision bf16 1.00 (1.00 x)" in notes
    assert "mean seconds" not in leaderboard(rows[:3], "md")


def test_settings_that_are_not_default_make_a_row_of_their_own():
    rows = markdown_cells([row(settings={"precision": "fp32"}), row(settings={"precision": "bf16", "threads": 4})])

    assert [line[2] for line in rows] == ["settings", "", "", "precision bf16, 4 threads"]


def test_a_quantizer_that_reads_no_images_has_no_generator():
    assert markdown_cells([row(generator=None, quantizer="squant", methods={})])[2][:2] == ["none", "squant"]


def test_a_model_with_random_weights_is_marked_in_every_column_even_where_a_cell_did_not_run():
    results = [row(status="excluded", metrics={}), row(scheme="hw/w8a8", model_facts={"random_weights": True})]

    assert markdown_cells(results)[0][2:] == [
        "digits resnet20 (random weights) hw/w4a4",
        "digits resnet20 (random weights) hw/w8a8",
    ]


def test_cells_that_did_not_run_show_status_and_a_numbered_reason_once():
    results = [
        row(**NAN_IMAGES),
        row(**NAN_IMAGES | {"generator": "dgh"}),
        row(generator="intraq", status="impossible", reason="it needs\nBN", metrics={}),
    ]

    text = leaderboard(results, "md")

    assert [line[-1] for line in markdown_cells(results)[2:]] == ["failed [1]", "failed [1]", "impossible [2]"]
    assert text.endswith("- [1] failed: generate: images are NaN\n- [2] impossible: it needs BN")


def test_a_cell_without_a_reason_says_so():
    assert leaderboard([row(status="interrupted", metrics={})], "md").endswith("interrupted: no reason was given")


def test_the_worst_status_of_the_seeds_is_shown():
    results = [row(status="interrupted", metrics={}, reason="stopped"), row(**NAN_IMAGES, seed=1)]

    assert markdown_cells(results)[2][-1] == "failed [1] [2]"


def test_where_some_seeds_failed_the_mean_is_over_the_others_with_a_footnote():
    results = [row(90.0, seed=0), row(92.0, seed=1), row(**NAN_IMAGES, seed=2)]

    assert markdown_cells(results)[2][-1] == "91.00 ± 1.41 (-7.00) [1]"
    assert "[1] 1 of 3 seeds failed: generate: images are NaN" in leaderboard(results, "md")


@pytest.mark.parametrize("form", ["md", "html", "latex", "json"])
def test_every_format_says_what_was_measured(form):
    text = leaderboard([row(seed=0), row(seed=1)], form)

    assert "digits: top-1 accuracy in percent, 902 samples evaluated" in text
    assert "calibration sets of 1024 images" in text
    assert re.search(r"mean (±|\$\\pm\$) sample standard deviation over seeds 0, 1", text)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_every_format_names_the_reason_of_a_failure(form):
    assert "images are NaN" in leaderboard([row(**NAN_IMAGES)], form)


@pytest.mark.parametrize("form", ["md", "csv", "html", "latex", "json"])
def test_equal_results_make_equal_texts(form):
    assert leaderboard([row(), row(generator="dgh")], form) == leaderboard([row(), row(generator="dgh")], form)


def test_where_all_cells_failed_the_samples_of_the_float_network_are_counted():
    results = [row(**NAN_IMAGES | {"data": data}) for data in ({"evaluated": 902, "calibrated": None}, {})]

    text = leaderboard(results, "md")

    assert "- digits: top-1 accuracy in percent, 902 samples evaluated\n" in text
    assert "calibration sets" not in text


def test_an_unknown_count_is_no_count():
    results = [row(**NAN_IMAGES | {"data": {"evaluated": None, "calibrated": None}})]

    assert ", no samples evaluated\n" in leaderboard(results, "md")


def test_different_calibration_budgets_are_told_apart():
    text = leaderboard([row(), row(generator="dgh", data={"evaluated": 902, "calibrated": 128})], "md")

    assert "calibration sets of 1024 images (zeroq); 128 images (dgh)" in text


def test_float_networks_that_differ_under_one_name_are_pointed_out():
    text = leaderboard([row(), row(generator="dgh", float_metrics={"top1": 97.0})], "md")

    assert "digits resnet20: float accuracy differs between rows (97.0, 98.0); run the suite again" in text


def test_a_suite_without_seeds_says_so():
    assert "unseeded; in parentheses" in leaderboard([row(seed=None)], "md")


def test_a_metric_of_another_task_goes_by_its_own_name():
    text = leaderboard([row(metric="mIoU", metrics={"mIoU": 30.0}, float_metrics={"mIoU": 40.0})], "md")

    assert "digits: mIoU, 902 samples evaluated" in text


def test_nothing_measured_at_all_is_still_a_table():
    results = [row(status="excluded", metric=None, metrics={}, float_metrics={}, data={}, reason="shown once")]

    assert markdown_cells(results)[1:] == [["float", "", ""], ["zeroq", "rtn", "excluded [1]"]]


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
        r"\\caption\{Suite demo: top-1 .* at hw/w4a4; .* over seeds 0, 1; .*; bold: the best data-free .*\.\}", text
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


# --- beside results: the best epoch by the evaluated images, and what papers say --------------------------------------


CITATION = "Someone: Something, CVPR 2020"


def oracle(value, epoch=8):
    return {"epoch": epoch, "metrics": {"top1": value}, "of": 3}


def published(value, **changes):
    return {"value": value, "source": "Some, Table 1", "citation": CITATION, **changes}


def test_the_oracle_has_a_column_of_its_own_beside_that_of_its_scheme():
    results = [row(90.0, oracle=oracle(92.0)), row(91.0, seed=1, oracle=oracle(95.0)), row(scheme="hw/w8a8")]

    heads, _, cells = markdown_cells(results)

    assert heads[2:] == ["digits resnet20 hw/w4a4", "digits resnet20 hw/w4a4 (oracle)", "digits resnet20 hw/w8a8"]
    assert cells[2:] == ["**90.50 ± 0.71 (-7.50)**", "93.50 ± 2.12 (-4.50)", "**91.00 (-7.00)**"]


def test_the_oracle_does_not_compete_and_is_not_compared_with_noise():
    results = [
        row(90.0, generator="noise", oracle=oracle(99.0)),
        row(91.0, oracle=oracle(91.5)),
        row(92.0, generator="dgh"),
    ]

    text = leaderboard(results, "md")

    assert [line[-2:] for line in markdown_cells(results)[1:]] == [
        ["98.00", ""],
        ["90.00 (-8.00)", "99.00 (+1.00)"],
        ["91.00 (-7.00)", "91.50 (-6.50)"],
        ["**92.00 (-6.00)**", ""],
    ]
    assert BELOW_CONTROL not in text.partition("- bold")[2].partition("\n")[2]


def test_a_column_of_the_oracle_says_what_it_is():
    note = "oracle: the best epoch, chosen on the evaluated images themselves, which nobody without them can do"

    assert note in leaderboard([row(oracle=oracle(92.0))], "md")
    assert "oracle" not in leaderboard([row()], "md")


def test_the_oracle_of_a_seed_that_failed_is_not_shown_and_its_reason_stands_once():
    results = [row(90.0, oracle=oracle(92.0)), row(**NAN_IMAGES, seed=1)]

    assert markdown_cells(results)[2][2:] == ["90.00 (-8.00) [1]", "92.00 (-6.00)"]


def test_a_published_value_has_a_column_of_its_own_with_its_float_network_and_its_note():
    told = published(92.36, std=0.09, float=94.03, note="at another moon")
    results = [row(90.0, published=told), row(91.0, seed=1, published=told), row(generator="dgh")]

    table = markdown_cells(results)

    assert table[0][2:] == ["digits resnet20 hw/w4a4", "digits resnet20 hw/w4a4 (published)"]
    assert [line[-1] for line in table[1:]] == ["94.03", "92.36 ± 0.09 (-1.67) [1]", ""]
    assert leaderboard(results, "md").endswith("- [1] at another moon")


def test_a_published_value_alone_has_neither_deviation_nor_difference():
    assert markdown_cells([row(published=published(92.0))])[2][-1] == "92.00"


def test_a_published_value_does_not_compete():
    assert [
        record["best"] for record in records([row(90.0, published=published(99.0)), row(91.0, generator="dgh")])
    ] == [
        False,
        True,
    ]


def test_a_published_value_stands_beside_what_failed():
    assert markdown_cells([row(**NAN_IMAGES, published=published(92.0))])[2][2:] == ["failed [1]", "92.00"]


def test_published_values_are_cited_once_with_their_tables():
    results = [
        row(published=published(92.0)),
        row(generator="dgh", published=published(91.0, source="Some, Table 2")),
        row(generator="genie", published=published(90.0)),
    ]

    text = leaderboard(results, "md")

    assert f"- published: Some, Table 1, Some, Table 2, as its authors measured it: {CITATION}\n" in text + "\n"
    assert text.count(CITATION) == 1


def test_both_stand_in_the_order_measured_oracle_published():
    results = [row(published=published(92.0)), row(generator="dgh", oracle=oracle(93.0))]

    assert [head.rpartition(" ")[2] for head in markdown_cells(results)[0][2:]] == [
        "hw/w4a4",
        "(oracle)",
        "(published)",
    ]


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


def test_a_row_says_what_its_quantizer_starts_from():
    start = {"method": "brecq", "changed": {"weight_iterations": 100}}
    methods = {"quantizer": {"method": "ste", "changed": {"start": "short", "lr": 0.1}, "start": start}}

    label = markdown_cells([row(quantizer="ste", methods=methods)])[2][1]

    assert label == "ste (start short (brecq, 100 weight iterations), lr 0.1)"


def test_ten_thousand_cells_are_one_table():
    results = [
        row(generator=f"g{generator}", scheme=f"hw/w{bits}a8", seed=seed)
        for generator in range(500)
        for bits in range(2, 7)
        for seed in range(4)
    ]

    table = build_table(results)

    assert (len(table.rows), len(table.columns), len(table.best)) == (500, 5, 2500)
