from itertools import combinations

import numpy as np
import pytest
from brief import parametrize_briefly
from statsmodels.stats.multitest import multipletests

from zsqbench.statistics import Resampled, Samples, compare, letters, resamples, ties

OVER, THESE = "over seeds", "for these seeds"


def column(accuracies, seeds=5, images=900):
    rng = np.random.default_rng(0)
    difficulty = rng.random(images)
    of_seeds = tuple(range(seeds))
    return {
        name: Samples((0.5 * difficulty + 0.5 * rng.random((max(seeds, 1), images))) < accuracy, of_seeds)
        for name, accuracy in accuracies.items()
    }


def matrix(count, tied):
    """Ties as `letters` takes them."""
    tie = np.zeros((count, count), dtype=bool)
    for one, other in tied:
        tie[one, other] = tie[other, one] = True
    return tie


@pytest.mark.parametrize(
    ("tied", "expected"),
    [
        ([], {"A": "a", "B": "b", "C": "c", "D": "d"}),
        (["AB", "CD"], {"A": "a", "B": "a", "C": "b", "D": "b"}),
        (["AB", "BC"], {"A": "a", "B": "ab", "C": "b", "D": "c"}),
        (["AB", "AC", "BC", "BD", "CD"], {"A": "a", "B": "ab", "C": "ab", "D": "b"}),
        (["AC", "BC"], {"A": "a", "B": "b", "C": "ab", "D": "c"}),
        (["AD", "AB"], {"A": "ab", "B": "a", "C": "c", "D": "b"}),
        (["AB", "AC", "AD", "BC", "BD", "CD"], dict.fromkeys("ABCD", "a")),
    ],
)
def test_letters_are_those_that_one_would_write(tied, expected):
    given = letters(matrix(4, [("ABCD".index(one), "ABCD".index(other)) for one, other in tied]))
    assert dict(zip("ABCD", map("".join, given), strict=True)) == expected


def test_methods_share_a_letter_just_where_they_tie():
    rng = np.random.default_rng(0)
    for density in (0.1, 0.5, 0.9):
        names = range(40)
        tied = [pair for pair in combinations(names, 2) if rng.random() < density]
        given = [set(each) for each in letters(matrix(40, tied))]
        assert all(given)
        assert [pair for pair in combinations(names, 2) if given[pair[0]] & given[pair[1]]] == tied


def test_more_groups_than_letters_go_on_with_a_number():
    given = letters(matrix(60, []))
    assert [given[index] for index in (0, 25, 26, 52)] == [("a",), ("z",), ("a2",), ("a3",)]


def test_all_pairs_are_compared_and_adjusted_by_holm():
    methods = column({"good": 0.5, "better": 0.505, "bad": 0.4})
    found = ties(methods)
    pairs = [("better", "good"), ("better", "bad"), ("good", "bad")]
    raw = [compare(methods[one], methods[other], OVER).p for one, other in pairs]
    assert list(found.p) == pairs
    assert list(found.p.values()) == pytest.approx(multipletests(raw, method="holm")[1])
    assert found.letters == {"better": ("a",), "good": ("a",), "bad": ("b",)}
    assert found.scope == OVER


def test_a_column_speaks_over_seeds_where_each_method_has_five_or_none():
    assert ties(column({"one": 0.5, "other": 0.4}, seeds=4)).scope == THESE
    five = column({"one": 0.5, "other": 0.4}, seeds=5)
    assert ties(five).scope == OVER
    assert ties(five | column({"third": 0.2, "fourth": 0.2}, seeds=0)).scope == OVER
    assert ties(five | column({"third": 0.2}, seeds=2)).scope == THESE
    assert ties(column({"one": 0.5, "other": 0.4}, seeds=0)).scope == THESE


def test_methods_without_values_or_of_other_images_have_no_letter():
    methods = column({"one": 0.5, "other": 0.4}) | {"detector": "no values per image"}
    found = ties(methods | column({"short": 0.5}, images=90))
    assert found.letters.keys() == {"one", "other"}
    assert found.without == {
        "detector": "no values per image",
        "short": "it was measured on 90 images, others on 900",
    }


def test_a_pair_without_a_common_seed_ties_and_says_why():
    one, other = column({"one": 0.6, "other": 0.1}, seeds=2).values()
    found = ties({"one": one, "other": Samples(other.values, (7, 8))})
    assert found.letters == {"one": ("a",), "other": ("a",)}
    assert found.untold[("one", "other")].startswith("no common seeds")
    assert not found.p


def test_a_column_of_one_or_none_has_a_group_of_one_or_none():
    assert ties(column({"one": 0.5})).letters == {"one": ("a",)}
    assert ties({"none": "failed"}).letters == {}


def test_equal_methods_are_ordered_as_they_were_given():
    same = next(iter(column({"one": 0.5}).values()))
    assert list(ties({"z": same, "a": same, "m": same}).letters) == ["z", "a", "m"]


@parametrize_briefly("seeds,others", [(0, 0), (5, 5), (5, 2), (1, 0), (2, 2), (5, 0)], 1)
@pytest.mark.parametrize("dtype", [bool, float])
def test_pairs_that_are_computed_together_are_those_that_are_compared_one_by_one(seeds, others, dtype):
    few = {index: 0.4 + index / 50 for index in range(2)}
    methods = column(few, seeds) | {10 + index: each for index, each in column(few, others).items()}
    methods = {name: Samples(each.values.astype(dtype), each.seeds) for name, each in methods.items()}
    found = ties(methods)
    one_by_one = [
        compare(methods[one], methods[other], found.scope if methods[one].seeds or methods[other].seeds else None)
        for one, other in found.p
    ]
    assert len(found.p) == 6
    adjusted = multipletests([each.p for each in one_by_one], method="holm")[1]
    assert list(found.p.values()) == pytest.approx(adjusted, rel=1e-6)


def test_ten_thousand_pairs_have_letters():
    found = ties(column({index: 0.3 + index / 600 for index in range(150)}, 5))
    assert len(found.p) == 150 * 149 / 2
    assert all(found.letters.values())


@pytest.mark.parametrize("scope", [THESE, OVER])
@parametrize_briefly("seeds", [5, 0], 1)
def test_a_metric_on_resampled_images_is_told_apart_as_two_are_compared(seeds, scope):
    draws, weights = np.random.default_rng(0), resamples(300)
    methods = {
        name: Resampled(values.mean(axis=1), values @ weights.T / 299, 300, tuple(range(seeds)))
        for name, mean in {"A": 0.6, "B": 0.58, "C": 0.2}.items()
        for values in (mean + 0.2 * draws.random((max(seeds, 1), 300)),)
    }
    found = ties(methods, scope)
    assert "".join(found.letters["C"]) not in "".join(found.letters["A"])
    pairs = list(combinations("ABC", 2))
    alone = [compare(methods[one], methods[other], scope if seeds else None).p for one, other in pairs]
    expected = multipletests(alone, method="holm")[1]
    assert [found.p[pair] for pair in pairs] == pytest.approx(expected, rel=1e-5)


def test_a_metric_on_resampled_images_cannot_be_compared_with_values_of_images():
    plain = column({"A": 0.9}, seeds=0, images=50)
    other = {"B": Resampled(np.array([0.5]), np.full((1, 50), 0.5), 50)}
    found = ties(plain | other)
    assert list(found.untold) == [("A", "B")]
    assert found.letters["A"] == found.letters["B"]
