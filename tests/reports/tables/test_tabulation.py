import base64

import pytest
from rows import NAN_IMAGES, markdown_cells, oracle, published, row

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.tables.leaderboard import leaderboard
from zsqbench.reports.tables.tabulation import Layout, build_tables


def test_no_results_say_to_run_the_suite_first():
    with pytest.raises(ZSQBenchError, match="run the suite first"):
        leaderboard([], "md")


def test_a_cell_is_mean_and_sample_deviation_over_seeds_and_the_difference_from_float():
    assert markdown_cells([row(90.0, seed=0), row(92.0, seed=1)])[2] == ["zeroq", "rtn", "**91.00 ± 1.41 (-7.00)**"]


def test_a_single_seed_has_no_deviation():
    assert markdown_cells([row(91.0)])[2][-1] == "**91.00 (-7.00)**"


def test_an_exact_reproduction_of_float_has_no_negative_zero():
    assert markdown_cells([row(98.0)])[2][-1] == "**98.00 (+0.00)**"


def test_the_first_row_is_the_float_network():
    assert markdown_cells([row()])[1] == ["float", "", "98.00"]


def test_columns_are_task_model_and_scheme_in_the_order_of_the_results():
    heads = markdown_cells([row(scheme="hw/w8a8"), row(scheme="hw/w4a4"), row(model="vgg", scheme="hw/w8a8")])[0]

    assert heads == [
        "generator",
        "quantizer",
        "resnet20 hw/w8a8",
        "resnet20 hw/w4a4",
        "vgg hw/w8a8",
    ]


def test_rows_are_in_the_order_of_the_results():
    assert [line[0] for line in markdown_cells([row(generator="z"), row(generator="a")])[2:]] == ["z", "a"]


def test_a_cell_that_the_suite_does_not_have_is_empty():
    assert markdown_cells([row(), row(generator="dgh", scheme="hw/w8a8")])[2][-1] == ""


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


def test_nothing_measured_at_all_is_still_a_table():
    results = [row(status="excluded", metric=None, metrics={}, float_metrics={}, data={}, reason="shown once")]

    assert markdown_cells(results)[1:] == [["float", "", ""], ["zeroq", "rtn", "excluded [1]"]]


def test_the_oracle_has_a_column_of_its_own_beside_that_of_its_scheme():
    results = [row(90.0, oracle=oracle(92.0)), row(91.0, seed=1, oracle=oracle(95.0)), row(scheme="hw/w8a8")]

    heads, _, cells = markdown_cells(results)

    assert heads[2:] == ["resnet20 hw/w4a4", "resnet20 hw/w4a4 (oracle)", "resnet20 hw/w8a8"]
    assert cells[2:] == ["**90.50 ± 0.71 (-7.50)**", "93.50 ± 2.12 (-4.50)", "**91.00 (-7.00)**"]


def test_the_oracle_of_a_seed_that_failed_is_not_shown_and_its_reason_stands_once():
    results = [row(90.0, oracle=oracle(92.0)), row(**NAN_IMAGES, seed=1)]

    assert markdown_cells(results)[2][2:] == ["90.00 (-8.00) [1]", "92.00 (-6.00)"]


def test_a_published_value_has_a_column_of_its_own_with_its_float_network_and_its_note():
    told = published(92.36, std=0.09, float=94.03, note="at another moon")
    results = [row(90.0, published=told), row(91.0, seed=1, published=told), row(generator="dgh")]

    table = markdown_cells(results)

    assert table[0][2:] == ["resnet20 hw/w4a4", "resnet20 hw/w4a4 (published)"]
    assert [line[-1] for line in table[1:]] == ["94.03", "92.36 ± 0.09 (-1.67) [1]", ""]
    assert leaderboard(results, "md").endswith("- [1] at another moon")


def test_a_published_value_alone_has_neither_deviation_nor_difference():
    assert markdown_cells([row(published=published(92.0))])[2][-1] == "92.00"


def test_a_published_value_stands_beside_what_failed():
    assert markdown_cells([row(**NAN_IMAGES, published=published(92.0))])[2][2:] == ["failed [1]", "92.00"]


def test_both_stand_in_the_order_measured_oracle_published():
    results = [row(published=published(92.0)), row(generator="dgh", oracle=oracle(93.0))]

    assert [head.rpartition(" ")[2] for head in markdown_cells(results)[0][2:]] == [
        "hw/w4a4",
        "(oracle)",
        "(published)",
    ]


ALL_BUT_7 = base64.b64encode(b"\x01" + 9 * b"\xff").decode()
"""73 of 80 images, which is 91.25 %."""


@pytest.mark.slow("it makes ten thousand rows")
def test_ten_thousand_cells_are_one_table():
    results = [
        row(
            91.25,
            generator=f"g{generator}",
            scheme=f"hw/w{bits}a8",
            seed=seed,
            data={"evaluated": 80},
            correct=ALL_BUT_7,
        )
        for generator in range(500)
        for bits in range(2, 7)
        for seed in range(4)
    ]

    (table,) = build_tables(results)

    assert (len(table.rows), len(table.columns), len(table.competition.best)) == (500, 5, 2500)


def scenes(value, **changes):
    """A result of another task."""
    return row(task="scenes", metric="mAP", metrics={"mAP": value}, float_metrics={"mAP": 60.0}, **changes)


def titles(results, layout):
    return [line for line in leaderboard(results, "md", layout).splitlines() if line.startswith("#")]


def test_there_is_a_table_for_each_task_that_names_its_metric():
    assert titles([row(), scenes(50.0)], Layout()) == [
        "# demo",
        "## digits: top-1 accuracy in percent",
        "## scenes: COCO's mean average precision (IoU 0.5 to 0.95) in percent",
    ]


def test_there_may_be_a_table_for_each_model_or_scheme_and_heads_leave_it_out():
    results = [row(), row(model="vgg"), row(scheme="hw/w8a8")]
    assert titles(results, Layout(by="model")) == ["# demo", "## resnet20", "## vgg"]
    assert titles(results, Layout(by="scheme")) == ["# demo", "## hw/w4a4", "## hw/w8a8"]
    heads = [table.head(column) for table in build_tables(results, Layout(by="scheme")) for column in table.columns]
    assert heads == [("digits", "resnet20"), ("digits", "vgg"), ("digits", "resnet20")]


def test_another_metric_is_shown_of_rows_that_have_it():
    results = [row(metrics={"top1": 91.0, "top5": 99.5}, float_metrics={"top1": 98.0, "top5": 100.0}), scenes(50.0)]
    (table,) = build_tables(results, Layout(metric="top5"))
    assert [(entry.mean, entry.drop) for entry in table.entries.values()] == [(99.5, 0.5)]
    assert table.metric == "top-5 accuracy in percent"


def test_methods_stand_by_what_they_reach_in_the_column_that_is_asked_for():
    results = [
        row(80.0, generator="a"),
        row(91.0, generator="b"),
        row(95.0, generator="a", scheme="hw/w8a8"),
        row(generator="c", **NAN_IMAGES),
    ]
    (table,) = build_tables(results, Layout(sort="w4a4"))
    assert [each.generator for each in table.rows] == ["b", "a", "c"]
    (table,) = build_tables(results, Layout(sort="resnet20 hw/w8a8"))
    assert [each.generator for each in table.rows] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(metric="top9"), "unknown metric 'top9'"),
        (Layout(sort="w9"), "unknown column 'w9'"),
        (Layout(columns=["nosuch"]), "unknown column 'nosuch'"),
    ],
)
def test_a_wish_that_no_row_meets_is_refused_in_one_line(layout, message):
    with pytest.raises(ZSQBenchError, match=message):
        build_tables([row()], layout)


def test_a_figure_of_one_task_adds_no_column_to_the_table_of_another():
    tables = build_tables([row(metrics={"top1": 91.0, "agreement": 90.0}), scenes(50.0)], Layout(columns=["agreement"]))
    assert [len(table.columns) for table in tables] == [2, 1]
