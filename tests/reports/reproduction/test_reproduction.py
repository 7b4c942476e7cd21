import pytest
from papers import DATA, FLOAT_VALUE, cells_of, rows_of, source, suite_of, value, with_option

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.reproduction.page import counts_of, data_of, text_of
from zsqbench.reports.reproduction.reproduction import PaperTable, entries_of


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return suite_of(tmp_path_factory.mktemp("suite"))


def table(suite, *values, used=None, row=None):
    """The table of a paper whose suite this is, with its float network."""
    said = source(FLOAT_VALUE, *values)
    used = used or suite
    return PaperTable(said, "1", entries_of(values or said.values, used, row), suite, used, DATA)


def nothing_missing(_):
    return None


def verdict(suite, number, rows, missing=nothing_missing, **changes):
    (found,) = table(suite, value(number, **changes)).reproduction(rows, missing).values
    return found


def test_a_value_that_the_rows_exceed_is_reached(suite):
    found = verdict(suite, 89.0, rows_of(suite, 90.0))
    assert (found.sentence, found.task) == ("reached", "digits")
    assert (found.measured.mean, found.measured.deviation, found.measured.seeds) == (90.0, 0.0, (0, 1, 2))
    assert found.measured.distance.points == pytest.approx(1.0)


def test_a_value_within_the_interval_is_reached(suite):
    found = verdict(suite, 91.0, rows_of(suite, 90.0))
    assert found.sentence == "reached"
    assert found.measured.distance.low < 0 < found.measured.distance.high


def test_a_value_beyond_the_interval_is_not_reached_by_so_many_points(suite):
    found = verdict(suite, 94.0, rows_of(suite, 90.0))
    assert found.sentence == "not reached: by 4.00 points (interval 2.14 to 5.86)"


def test_a_stated_deviation_may_bring_a_value_within_reach(suite):
    assert verdict(suite, 94.0, rows_of(suite, 90.0), std=3.0).verdict == "reached"


@pytest.mark.parametrize("number", [50.0, 99.9])
def test_what_was_measured_otherwise_is_neither_reached_nor_not(suite, number):
    rows = [with_option(row, "generator", iterations=20) for row in rows_of(suite, 90.0)]
    found = verdict(suite, number, rows)
    assert found.sentence == "not comparable: other budget (generator iterations 20, published 100)"


def test_what_a_source_is_known_to_do_otherwise_is_not_comparable(suite):
    found = verdict(suite, 99.0, rows_of(suite, 90.0), differs="other scheme (8 bits)")
    assert found.sentence == "not comparable: other scheme (8 bits)"


def test_a_value_without_a_row_is_not_run_and_says_why(suite):
    assert verdict(suite, 90.0, []).sentence == "not run: no row yet"
    assert verdict(suite, 90.0, [], lambda cell: f"no {cell.task}").sentence == "not run: no digits"
    failed = rows_of(suite, 90.0, status="failed", reason="no luck", metrics={})
    assert verdict(suite, 90.0, failed).sentence == "not run: failed: no luck"
    assert verdict(suite, 90.0, [], generator="dgh").sentence == "not run: no cell of suite paper is called so"


def test_a_cell_that_is_excluded_says_why(tmp_path):
    text = "exclude: [{quantizer: rtn, because: it takes long}]"
    suite = suite_of(tmp_path, f"{suite_of(tmp_path).path.read_text()}{text}\n")
    assert verdict(suite, 90.0, []).sentence == "not run: it takes long"


def test_a_value_that_is_half_done_is_another_budget(suite):
    found = verdict(suite, 99.0, rows_of(suite, 90.0)[:1])
    assert found.sentence == "not comparable: other budget (1 of 3 seeds)"
    failed = rows_of(suite, 90.0, status="failed", reason="no luck", metrics={})[1:]
    assert verdict(suite, 99.0, [*rows_of(suite, 90.0)[:1], *failed]).sentence == found.sentence


def test_a_metric_without_values_of_images_has_an_interval_over_seeds_alone(suite):
    rows = rows_of(suite, 90.0, correct=None)
    numbers = [row.model_copy(update={"metrics": {"top1": 90.0 + row.seed}}) for row in rows]
    assert verdict(suite, 92.0, numbers).measured.distance.high == pytest.approx(-1 + 4.30265 / 3**0.5, abs=1e-3)
    assert verdict(suite, 92.0, numbers).verdict == "reached"
    assert verdict(suite, 96.0, numbers).verdict == "not reached"


def test_one_seed_without_values_of_images_has_no_interval(suite):
    (row,) = rows_of(suite, 90.0, "none", "squant", correct=None)
    axes = {"generator": "none", "quantizer": "squant"}
    assert verdict(suite, 89.0, [row], **axes).sentence == "reached"
    found = verdict(suite, 91.0, [row], **axes)
    assert found.sentence.startswith("not reached: by 1.00 points (no interval, for nothing is known of single images")
    assert "+" not in text_of(table(suite, value(89.0, **axes)).reproduction([], nothing_missing))


@pytest.mark.parametrize(
    ("reached", "sentence"),
    [
        (95.0, "reached"),
        (95.09, "reached"),
        (94.8, "not comparable: other weights or data (float network 94.80, published 95.00)"),
    ],
)
def test_a_float_network_is_the_published_one_where_it_reaches_the_same(suite, reached, sentence):
    rows = rows_of(suite, 90.0, float_metrics={"top1": reached})
    (found,) = table(suite, FLOAT_VALUE).reproduction(rows, nothing_missing).values
    assert (found.sentence, found.measured.mean, found.measured.distance) == (sentence, reached, None)


def test_a_float_network_as_the_suite_expects_it_may_miss_what_a_paper_says(tmp_path):
    text = suite_of(tmp_path).path.read_text().replace("base: resnet20", "base: resnet20, float_accuracy: 94.5")
    suite = suite_of(tmp_path, text)
    rows = rows_of(suite, 90.0, float_metrics={"top1": 94.5})
    (found,) = table(suite, FLOAT_VALUE).reproduction(rows, nothing_missing).values
    assert found.sentence == "not reached: by 0.50 points, and the same network is within 0.1"


def test_a_float_network_on_other_images_does_not_compare_and_without_a_row_is_not_run(suite):
    (found,) = table(suite, FLOAT_VALUE).reproduction(rows_of(suite, 90.0, images=846), nothing_missing).values
    assert found.sentence == "not comparable: other data (846 of 1,000 images)"
    (found,) = table(suite, FLOAT_VALUE).reproduction([], nothing_missing).values
    assert found.sentence == "not run: no row yet"


def test_without_a_suite_nothing_is_run_and_nothing_compares(suite):
    values = (FLOAT_VALUE, value(99.0))
    alone = PaperTable(source(*values), "1", entries_of(values, None), None, None)
    assert {each.sentence for each in alone.reproduction([], nothing_missing).values} == {
        "not run: no shipped suite asks for this table; give --suite FILE"
    }
    other = PaperTable(source(*values), "1", entries_of(values, suite), None, suite)
    found = other.reproduction(rows_of(suite, 90.0), nothing_missing).values
    why = "no shipped suite says how it was measured, so weights and budgets cannot be compared"
    assert {each.sentence for each in found} == {f"not comparable: {why}"}


def test_cells_of_two_tasks_are_two_lines_that_say_which(suite, tmp_path):
    text = suite.path.read_text()
    text = text.replace("tasks:\n", "tasks:\n  more: {method: classification, data: digits}\n")
    used = suite_of(tmp_path, text.replace("- {task: digits,", "- {task: [digits, more],"))
    made = table(suite, value(89.0), used=used).reproduction(rows_of(used, 90.0), nothing_missing)
    assert [each.task for each in made.values] == ["digits", "more"]
    assert "digits:net:zeroq:rtn:hw/w4a4 (more)" in text_of(made)


def test_a_row_selects_values_by_parts_of_names_expressions_or_a_cell(suite):
    values = (FLOAT_VALUE, value(90.0), value(91.0, quantizer="ste"), value(92.0, "none", "squant"))

    def selected(row):
        return [entry.value.quantizer for entry in entries_of(values, suite, row)]

    assert selected(None) == ["fp32", "rtn", "ste", "squant"]
    assert selected("zeroq and not ste") == ["rtn"]
    assert selected("squant") == ["squant"]
    assert selected("fp32") == ["fp32"]
    assert selected("digits:net:zeroq:rtn:hw/w4a4:1") == ["rtn"]


def test_a_row_that_selects_nothing_is_refused_with_what_there_is(suite):
    with pytest.raises(ZSQBenchError, match="none of the 1 values matches ROW 'zerq'; did you mean 'zeroq'") as raised:
        entries_of([value(90.0)], suite, "zerq")
    assert "\n" not in str(raised.value)


def test_cells_of_a_table_are_those_of_its_values(suite):
    assert table(suite, value(90.0)).cells == cells_of(suite)
    assert table(suite, FLOAT_VALUE, value(90.0)).cells == cells_of(suite)
    assert len(table(suite, FLOAT_VALUE).cells) == 1
    assert table(suite, value(90.0)).data_of_tasks == {"digits": DATA["digits"]}


def test_budgets_are_those_of_the_methods_and_of_each_data_set_where_there_are_several(suite, tmp_path):
    assert table(suite, value(90.0), value(90.0, "none", "squant")).budgets == {
        "quantizer rtn": {"search_images": 64, "batch_size": 64},
        "generator zeroq": {"images": 64, "batch_size": 64, "iterations": 100},
        "quantizer squant": {"noise_images": 32},
    }
    text = suite.path.read_text().replace("tasks:\n", "tasks:\n  more: {method: classification, data: digits}\n")
    text += "  - {task: more, model: resnet20, generator: zeroq, quantizer: ste, scheme: hw/w4a4}\n"
    values = (
        value(90.0, quantizer="ste", data="cifar10"),
        value(90.0, quantizer="ste", data="imagenet", model="resnet20"),
    )
    budgets = table(suite, *values, used=suite_of(tmp_path, text)).budgets
    assert budgets["quantizer ste on cifar10"]["batch_size"] == 256
    assert budgets["quantizer ste on imagenet"]["batch_size"] == 16
    assert PaperTable(source(*values), "1", entries_of(values, None), None, None).budgets == {}


def made(suite):
    values = (FLOAT_VALUE, value(89.0, std=0.1, note="a word"), value(99.0, "none", "squant"))
    rows = [*rows_of(suite, 90.0), *rows_of(suite, 80.0, "none", "squant")]
    return table(suite, *values).reproduction(rows, nothing_missing)


def test_the_text_has_a_line_for_each_value_and_the_counts(suite):
    lines = text_of(made(suite)).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[2] == "digits:net:none:fp32:float 95.00 95.00 +0.00 reached"
    assert words[3].startswith("digits:net:zeroq:rtn:hw/w4a4 89.00 ± 0.10 90.00 ± 0.00, 3 seeds +1.00 (-0.87 to +2.87)")
    assert lines[6] == "3 values: 2 reached, 1 not reached"
    assert lines[-2:] == ["note: a word", "published: Someone: Something, 2020"]


def test_a_difference_of_what_does_not_compare_is_not_shown(suite):
    rows = [with_option(row, "generator", iterations=20) for row in rows_of(suite, 90.0)]
    text = text_of(table(suite, value(89.0)).reproduction(rows, nothing_missing))
    assert "90.00 ± 0.00, 3 seeds" in text
    assert "+1.00" not in text
    assert "difference: " not in text


def test_the_data_say_all_that_is_known(suite):
    data = data_of(made(suite))
    assert data["counts"] == {"reached": 2, "not reached": 1}
    assert (data["paper_suite"], data["suite"], data["table"]) == ("paper", "paper", "1")
    first = data["values"][1]
    assert first["published"] == {"value": 89.0, "std": 0.1, "metric": "top1", "note": "a word"}
    assert first["measured"]["distance"]["scope"] == "over seeds"
    assert first["cells"] == tuple(cell.name for cell in cells_of(suite))


def test_counts_are_in_words(suite):
    assert counts_of(table(suite, value(90.0)).reproduction([], nothing_missing)) == "1 value: 1 not run"
