import pytest
from rows import IMAGES, markdown_cells, method, records, right, row

from zsqbench.reports.tables.leaderboard import leaderboard


def shown(results):
    """The last column of each method."""
    return [line[-1] for line in markdown_cells(results)[2:]]


def best(results):
    return [record["best"] for record in records(results)]


def near(value, images):
    """The value with so many more images that are right."""
    return value + 100 * images / IMAGES


def test_all_that_cannot_be_told_from_the_best_are_bold():
    results = [row(near(91, 3)), row(91.0, generator="dgh"), row(80.0, generator="genie")]
    assert shown(results) == ["**91.30 (-6.70) a**", "**91.00 (-7.00) a**", "80.00 (-18.00) b"]


def test_a_lead_over_noise_that_chance_may_have_given_is_not_bold_and_has_a_footnote():
    results = [row(91.0, generator="noise"), row(near(91, 3)), row(91.0, generator="genie")]
    assert shown(results) == ["91.00 (-7.00) a", "91.30 (-6.70) a [1]", "91.00 (-7.00) a [1]"]
    assert leaderboard(results, "md").endswith("- [1] cannot be told from the negative control")
    assert [record["told_from_control"] for record in records(results)] == [None, False, False]


def test_a_method_that_noise_beats_with_another_quantizer_is_not_bold():
    noise = [row(7.0, generator="noise"), row(53.0, generator="noise", quantizer="hptq")]
    better = row(15.0)
    assert shown([*noise, better])[2] == "15.00 (-83.00) b"
    assert best([*noise, better]) == [False] * 3
    assert best([*noise, better, row(70.0, generator="dgh", quantizer="hptq")]) == [False, False, False, True]


def test_a_method_that_cannot_be_told_from_noise_with_another_quantizer_may_be_bold():
    noise = [row(7.0, generator="noise"), row(near(91, 3), generator="noise", quantizer="hptq")]
    assert best([*noise, row(91.0)]) == [False, False, True]


def test_controls_share_letters_with_methods_and_are_not_bold():
    results = [row(91.0), row(near(91, 3), generator="real", data_free=False)]
    assert shown(results) == ["**91.00 (-7.00) a**", "91.30 (-6.70) a"]


def test_nothing_is_bold_of_a_network_that_was_never_trained():
    assert best([row(model_facts={"random_weights": True}), row(80.0, generator="dgh")]) == [False, False]


def test_nothing_is_bold_where_no_method_could_be_compared():
    results = [row(91.0, correct=None), row(80.0, generator="dgh", correct=None)]
    assert best(results) == [False, False]
    text = leaderboard(results, "md")
    assert "- no letter for 2 results: its task keeps no value for each image" in text
    assert "letters:" not in text
    assert "bold:" not in text


def test_a_method_that_could_not_be_compared_is_named_where_others_were():
    results = [row(91.0), row(80.0, generator="dgh"), row(95.0, generator="genie", correct=None)]
    assert best(results) == [True, False, False]
    assert "- no letter for resnet20 hw/w4a4, genie with rtn: its task keeps no value for each image" in leaderboard(
        results, "md"
    )


def test_letters_and_what_can_be_detected_stand_below_the_table():
    text = leaderboard([row(91.0, seed=None), row(80.0, generator="dgh", seed=None)], "md")
    assert "- letters: two methods of a column that share a letter cannot be told apart on these images" in text
    assert "points between two methods alone would be detected in 80 of 100 cases" in text
    assert "for these seeds" not in text


def test_few_seeds_are_said_to_be_few():
    results = [row(value, generator=name, seed=seed) for name, value in (("a", 91.0), ("b", 80.0)) for seed in (0, 1)]
    assert "- letters hold for these seeds only: fewer than 5 seeds say too little of other seeds" in leaderboard(
        results, "md"
    )


def test_noise_at_another_mixed_size_is_told_by_its_mean():
    def mixed(value, generator, size, control=None):
        methods = {"quantizer": {"method": "mixed", "over": {"method": "rtn"}}, "generator": method(generator, control)}
        tensors = {"mean_weight_bits": 4.0, "size_mb": size}
        return row(value, generator=generator, methods=methods, tensors=tensors, correct=right(value))

    results = [mixed(90.0, "noise", 2.0, "negative"), mixed(91.0, "dgh", 2.1)]
    assert [record["told_from_control"] for record in records(results)] == [None, True]


@pytest.mark.parametrize("form", ["md", "html", "latex", "csv", "json"])
def test_every_format_has_the_letters(form):
    text = leaderboard([row(91.0), row(80.0, generator="dgh")], form)
    assert {"csv": ",b,", "json": '"letters": "b"'}.get(form, "(-18.00) b") in text
