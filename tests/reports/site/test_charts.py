import json
import re

import pytest
import vl_convert

from zsqbench.reports.site import charts
from zsqbench.reports.site.charts import PAIRS, RESULTS, SEEDS, Columns

METHODS = ["dgh with rtn", "zeroq with rtn"]
DATA = {
    "results": Columns(
        RESULTS,
        [
            [METHODS[0], "dgh", "rtn", "hw/w4a4", "", 97.5, 0.1, 1.0, 2, 98.5, 3.0, 0.01, "97.5", True, True, True],
            [
                METHODS[1],
                "zeroq",
                "rtn",
                "hw/w4a4",
                "",
                91.0,
                None,
                7.5,
                1,
                98.5,
                9.0,
                0.01,
                "91.0",
                False,
                False,
                False,
            ],
            ["b with rtn", "b", "rtn", "hw/w8a8", "", *[None] * 3, 0, 98.5, None, None, "failed", False, False, False],
        ],
    ),
    "seeds": Columns(
        SEEDS, [[METHODS[0], "hw/w4a4", 0, 97.4], [METHODS[0], "hw/w4a4", 1, 97.6], [METHODS[1], "hw/w4a4", 0, 91.0]]
    ),
    "pairs": Columns(PAIRS, [["hw/w4a4", *METHODS, 0.0001]]),
    "curves": Columns(("curve", "step", "value"), [["loss", 0, 2.0], ["loss", 1, 1.0], ["lr", 0, 0.1]]),
    "units": Columns(
        ("stage", "unit", "when", "loss"), [["weights", "conv", "before", 2.0], ["weights", "conv", "after", 0.5]]
    ),
}
ALL = {
    "heat map": charts.heat_map("h", "t", "results", ["hw/w4a4", "hw/w8a8"], 94.0, "top-1"),
    "seconds": charts.pareto("s", "t", "results", "seconds", "seconds", "top-1", "hw/w4a4"),
    "size": charts.pareto("z", "t", "results", "size", "MB", "top-1"),
    "spread": charts.spread("p", "t", "seeds", "hw/w4a4", METHODS, "top-1"),
    "significance": charts.significance("g", "t", "pairs", "hw/w4a4", METHODS),
    "curves": charts.curves("t", "curves"),
    "units": charts.unit_losses("t", "units", "weights"),
}
SHOWN = {
    "heat map": ["97.5", "91.0", "failed", "hw/w8a8"],
    "seconds": ["dgh with rtn", "zeroq"],
    "size": ["dgh with rtn", "hw/w4a4"],
    "spread": METHODS,
    "significance": [*METHODS, "&lt;.001", "below 0.001"],
    "curves": ["loss", "lr"],
    "units": ["conv", "before", "after"],
}


@pytest.mark.parametrize("name", ALL)
def test_a_chart_is_drawn_without_a_warning_and_shows_its_data(name, capfd):
    chart = ALL[name]
    svg = vl_convert.vegalite_to_svg(json.dumps(chart.complete(DATA)), show_warnings=True, allowed_base_urls=[])
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    for text in SHOWN[name]:
        assert f">{text}<" in svg


def test_a_warning_of_vega_lite_would_be_seen(capfd):
    spec = ALL["curves"].complete(DATA)
    spec["spec"]["encoding"]["nonsense"] = {"field": "step", "type": "quantitative"}
    vl_convert.vegalite_to_svg(json.dumps(spec), show_warnings=True)
    said = capfd.readouterr()
    assert "nonsense" in said.out + said.err


def test_a_chart_of_a_scheme_shows_no_other():
    svg = vl_convert.vegalite_to_svg(json.dumps(ALL["seconds"].complete(DATA)))
    assert "hw/w8a8" not in svg


def test_the_front_alone_has_names_beside_its_points_and_the_best_alone_is_bold():
    svg = vl_convert.vegalite_to_svg(json.dumps(ALL["seconds"].complete(DATA)))
    assert ">dgh with rtn<" in svg
    assert ">zeroq with rtn<" not in svg
    svg = vl_convert.vegalite_to_svg(json.dumps(ALL["heat map"].complete(DATA)))
    assert re.findall(r'font-weight="bold"[^>]*>([^<]*)<', svg).count("97.5") == 1
    assert "91.0" not in re.findall(r'font-weight="bold"[^>]*>([^<]*)<', svg)


@pytest.mark.parametrize(
    ("p", "level"),
    [
        (0.0009, "below 0.001"),
        (0.001, "below 0.01"),
        (0.01, "below 0.05"),
        (0.05, "not told apart"),
        (1, "not told apart"),
    ],
)
def test_pairs_are_told_apart_below_five_percent(p, level):
    data = {"pairs": Columns(PAIRS, [["hw/w4a4", *METHODS, p]])}
    svg = vl_convert.vegalite_to_svg(json.dumps(ALL["significance"].complete(data)))
    assert f"p (Holm): {level}" in svg


def test_a_line_of_a_chart_of_seeds_goes_from_the_lowest_to_the_highest():
    svg = vl_convert.vegalite_to_svg(json.dumps(ALL["spread"].complete(DATA)))
    lines = re.findall(r'<line aria-label="top-1: (\S+); method: [^;]*; Max of value: (\S+)"', svg)
    assert lines == [("97.4", "97.6"), ("91", "91")]
