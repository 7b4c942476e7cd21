import base64
import itertools
import json

import numpy as np
import pytest
from rows import IMAGES, row

from zsqbench.reports.tables import standings
from zsqbench.reports.tables.axes import grouped
from zsqbench.reports.tables.leaderboard import leaderboard
from zsqbench.reports.tables.standings import FOLDER, find_standings

SHORT = {"letters": [["a"]], "without": [None], "detectable": 1.0, "few_seeds": False, "untold": []}


def bits(*right):
    """Bits of 16 images, of which these are right."""
    return base64.b64encode(sum(1 << 15 - image for image in right).to_bytes(2)).decode()


def measured(right, generator, seed=0, **changes):
    """A row of 16 images."""
    fields = {
        "generator": generator,
        "seed": seed,
        "correct": bits(*right),
        "data": {"evaluated": 16, "digest": "photos"},
    }
    return row(100 * len(right) / 16, **fields | changes)


def standings_of(results, home=None):
    """Of the only column: letters and reasons by generator, and the rest."""
    (found,) = find_standings(grouped(results), home).values()
    return {method.generator: "".join(each.letters) or each.without for method, each in found.of.items()}, found


def test_methods_that_chance_may_have_parted_share_a_letter_and_others_do_not():
    results = [measured(range(16), "a"), measured(range(14), "b"), measured(range(3), "c")]
    assert standings_of(results)[0] == {"a": "a", "b": "a", "c": "b"}


def test_a_difference_is_one_of_the_same_images():
    """One point is certain where one method is right wherever the other is, and chance where they fail elsewhere."""
    elsewhere = base64.b64encode(((1 << 900) - 1).to_bytes(125)).decode()
    certain = [row(91.0, generator="a"), row(90.0, generator="b")]
    assert standings_of(certain)[0] == {"a": "a", "b": "b"}
    assert standings_of([certain[0], row(90.0, generator="b", correct=elsewhere)])[0] == {"a": "a", "b": "a"}


def test_methods_are_compared_for_their_seeds_alone_where_these_are_few():
    two = [measured(range(16), name, seed) for name in "ab" for seed in (0, 1)]
    five = [measured(range(16), name, seed) for name in "ab" for seed in range(5)]
    unseeded = [measured(range(16), name, None) for name in "ab"]
    assert [standings_of(results)[1].few_seeds for results in (two, five, unseeded)] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"correct": None}, "its task keeps no value for each image"),
        ({"data": {"evaluated": 16, "digest": "others"}}, "it was evaluated on other images"),
        ({"metric": "top5", "metrics": {"top5": 99.0}}, "top5 is not the share of images that are right"),
        ({"data": {"evaluated": 40, "digest": "photos"}}, "top1 is not the share of images that are right"),
    ],
)
def test_what_cannot_be_compared_says_why_and_ties_with_all(changes, why):
    results = [measured(range(16), "a"), measured(range(3), "b"), measured(range(3), "c", **changes)]
    letters, found = standings_of(results)
    assert letters == {"a": "a", "b": "b", "c": why}
    places = dict(zip("abc", found.of, strict=True))
    assert found.tie(places["a"], places["c"])
    assert found.tie(places["b"], places["c"])


def test_methods_without_a_seed_in_common_tie():
    results = [measured(range(16), "a", 0), measured(range(3), "b", 1)]
    letters, found = standings_of(results)
    assert letters == {"a": "a", "b": "a"}
    assert found.untold == ("no common seeds: one has 0, the other 1; run both with the same seed",)
    note = "- some methods share a letter because they cannot be compared: no common seeds"
    assert note in leaderboard(results, "md")


def test_a_column_of_one_method_has_no_standings():
    assert find_standings(grouped([measured(range(16), "a"), row(status="failed", metrics={})])) == {}


def test_a_column_is_computed_once_and_read_from_the_home_then(tmp_path, monkeypatch):
    results = [measured(range(16), "a"), measured(range(3), "b")]
    first = standings_of(results, tmp_path)
    monkeypatch.setattr(standings, "ties", None)
    assert standings_of(results, tmp_path) == first
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.parametrize(
    "damage", ["", "{", json.dumps({"letters": 3}), json.dumps({"letters": [["a"]]}), json.dumps(SHORT)]
)
def test_a_damaged_file_in_the_home_is_computed_anew(tmp_path, damage):
    results = [measured(range(16), "a"), measured(range(3), "b")]
    expected = standings_of(results, tmp_path)
    (kept,) = (tmp_path / FOLDER).iterdir()
    sound = kept.read_text()
    kept.write_text(damage)
    assert standings_of(results, tmp_path) == expected
    assert kept.read_text() == sound


def test_a_home_that_cannot_be_written_to_costs_time_only(tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    assert standings_of([measured(range(16), "a"), measured(range(3), "b")], home)[0] == {"a": "a", "b": "b"}


def test_other_bits_are_another_file(tmp_path):
    for right in itertools.islice(itertools.count(1), 3):
        standings_of([measured(range(16), "a"), measured(range(right), "b")], tmp_path)
    assert len(list((tmp_path / FOLDER).iterdir())) == 3


def test_the_bits_of_a_row_are_the_first_images(tmp_path):
    assert row(91.0).data["evaluated"] == IMAGES
    assert int.from_bytes(base64.b64decode(row(91.0).correct)).bit_count() == 910


def detected(reached, deviations, generator, seed=0, **changes):
    """A row of a detector: its mAP, and how that deviates on resampled images."""
    values = (reached + np.asarray(deviations)).astype("<f4")
    fields = {
        "generator": generator,
        "seed": seed,
        "metric": "mAP",
        "metrics": {"mAP": reached, "mAP50": reached + 10},
        "correct": None,
        "resampled": {"mAP": base64.b64encode(values.tobytes()).decode()},
        "data": {"evaluated": 60, "digest": "photos"},
    }
    return row(reached, **fields | changes)


SHARED = np.random.default_rng(0).normal(0, 0.3, 60)
"""An image that is hard for one detector is hard for all."""


def test_detectors_are_told_apart_by_their_metric_on_the_same_resampled_images():
    own = np.random.default_rng(1).normal(0, 0.05, (3, 60))
    results = [
        detected(reached, SHARED + own[at], generator)
        for at, (reached, generator) in enumerate([(50.0, "a"), (49.8, "b"), (45.0, "c")])
    ]
    assert standings_of(results)[0] == {"a": "a", "b": "a", "c": "b"}
    apart = [detected(50.0, SHARED, "a"), detected(48.0, -SHARED, "b")]
    assert standings_of(apart)[0] == {"a": "a", "b": "a"}


def test_a_metric_without_values_on_resampled_images_has_no_letters():
    results = [detected(50.0, SHARED, name, metric="mAP50") for name in "ab"]
    assert set(standings_of(results)[0].values()) == {"its task keeps no value for each image"}


def test_damaged_values_on_resampled_images_are_a_reason():
    results = [detected(50.0, SHARED, "a"), detected(50.0, SHARED, "b", resampled={"mAP": "AAA="})]
    assert standings_of(results)[0] == {"a": "a", "b": "its values on resampled images are damaged"}
    few = [detected(50.0, SHARED, "a"), detected(50.0, SHARED[:7], "b")]
    assert (
        standings_of(few)[0]["b"]
        == "values on resampled images (1, 7) of 60 images; expected (1, 60), and at least 2 images"
    )
