import pytest
from reportpages import rows_of_a_suite
from rows import method, seen

from zsqbench.reports.site.charts import MOST_PAIRS, MOST_SPREAD
from zsqbench.reports.site.sections import sections


@pytest.fixture(scope="module")
def section():
    (found,) = sections(rows_of_a_suite(), None)
    return found


def records(section, what):
    return section.data[f"{what} {section.title}"].records()


def test_charts_have_names_that_are_typed_easily(section):
    assert [chart.name for chart in section.charts] == [
        "heatmap digits resnet20",
        "pareto-size digits resnet20",
        *(
            f"{kind} digits resnet20 {scheme}"
            for scheme in ("hw/w4a4", "hw/w8a8")
            for kind in ("pareto-seconds", "spread", "significance")
        ),
    ]


def test_a_method_is_a_mean_over_seeds_and_a_failure_has_its_status(section):
    found = {(record["method"], record["scheme"]): record for record in records(section, "results")}
    dgh = found["dgh with rtn", "hw/w8a8"]
    assert (dgh["value"], dgh["seeds"], dgh["drop"], dgh["float"]) == (80.5, 2, 17.5, 98.0)
    broken = found["broken with rtn", "hw/w4a4"]
    assert (broken["value"], broken["text"]) == (None, "failed")


def test_the_front_has_what_nothing_cheaper_beats_and_no_control(section):
    front = {(record["method"], record["scheme"]) for record in records(section, "results") if record["front_seconds"]}
    # zeroq takes four times as long for less at 4 bits; noise is cheaper than both, and a control
    assert front == {("dgh with rtn", "hw/w4a4"), ("dgh with rtn", "hw/w8a8")}


def test_the_front_of_size_is_one_for_all_schemes():
    rows = [
        seen(range(right), scheme=scheme, tensors={"size_mb": size})
        for scheme, right, size in (("hw/w8a8", 90, 2.0), ("hw/w4a4", 80, 1.0), ("hw/w4a8", 70, 3.0))
    ]
    (found,) = sections(rows, None)
    front = {record["scheme"] for record in records(found, "results") if record["front_size"]}
    assert front == {"hw/w8a8", "hw/w4a4"}


def test_a_method_that_costs_more_for_as_much_is_not_on_the_front():
    rows = [seen(range(90), seconds={"quantize": 1.0}), seen(range(90), generator="b", seconds={"quantize": 2.0})]
    (found,) = sections(rows, None)
    assert [record["front_seconds"] for record in records(found, "results")] == [True, False]


def test_the_best_are_marked_and_numbers_below_the_middle_stand_on_dark_colours(section):
    best = {(record["method"], record["scheme"]) for record in records(section, "results") if record["best"]}
    assert best == {("dgh with rtn", "hw/w4a4"), ("dgh with rtn", "hw/w8a8")}
    color = section.charts[0].spec["concat"][0]["layer"][2]["encoding"]["color"]
    assert color["condition"]["test"] == "datum.value < 73"  # between 55.5 and 90.5


def test_the_grid_knows_what_is_bold_what_is_no_number_and_where_each_number_leads(section):
    rows = rows_of_a_suite()
    grid = section.part({row.cell: place for place, row in enumerate(rows)}).grid
    assert [grid.rows[down][across][:5] for down, across in grid.bold] == ["90.50", "80.50"]
    assert [grid.rows[down][across].split()[0] for down, across in grid.missing] == ["failed", "excluded"]
    for at, place in grid.links.items():
        down, across = map(int, at.split(","))
        assert (rows[place].generator, rows[place].scheme) == (grid.rows[down][0].split()[0], grid.heads[0][across])
    assert len(grid.links) == 8


def test_each_seed_is_a_point_and_each_pair_has_its_p(section):
    seeds = [(record["seed"], record["value"]) for record in records(section, "seeds") if record["scheme"] == "hw/w8a8"]
    assert (1, 61.0) in seeds
    pair = {(record["first"], record["second"]): record["p"] for record in records(section, "pairs")}
    assert pair["dgh with rtn", "noise with rtn"] < 0.05


def test_methods_of_one_name_are_told_apart_by_their_details():
    rows = [
        seen(range(90), methods={"generator": method("dgh"), "quantizer": method("rtn")}),
        seen(range(80), methods={"generator": method("dgh", images=64), "quantizer": method("rtn")}),
    ]
    (found,) = sections(rows, None)
    assert list(found.methods.values()) == ["dgh with rtn", "dgh (64 images) with rtn"]


def test_charts_of_many_methods_show_the_best_and_say_so():
    (found,) = sections([seen(range(99 - at), generator=f"g{at}") for at in range(MOST_SPREAD + 2)], None)
    titles = {chart.name.split()[0]: chart.title for chart in found.charts}
    assert titles["spread"].endswith(f"(the best {MOST_SPREAD} of {MOST_SPREAD + 2} methods)")
    assert titles["significance"].endswith(f"(the best {MOST_PAIRS} of {MOST_SPREAD + 2} methods)")
    assert len(records(found, "pairs")) == MOST_PAIRS * (MOST_PAIRS - 1) // 2


def test_rows_without_bits_have_no_chart_of_pairs_and_the_table_says_why():
    rows = [seen(range(90)), seen(range(80), generator="zeroq")]
    (found,) = sections([row.model_copy(update={"correct": None}) for row in rows], None)
    assert not any(chart.name.startswith("significance") for chart in found.charts)
    assert any(
        "its task keeps no value for each image" in note for note in found.part({row.cell: 0 for row in rows}).notes
    )


def test_a_section_in_which_nothing_is_done_has_no_charts():
    (found,) = sections([seen([], status="failed", metrics={}, reason="no")], None)
    assert found.charts == []


def test_there_is_a_section_for_each_task_and_network():
    found = sections([seen([1]), seen([1], model="other"), seen([1], task="more")], None)
    assert [each.title for each in found] == ["digits resnet20", "digits other", "more resnet20"]
