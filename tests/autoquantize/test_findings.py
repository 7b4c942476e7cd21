"""Which of the candidates is chosen."""

import base64
from pathlib import Path

import pytest

from zsqbench.autoquantize.candidates import Candidate, Level
from zsqbench.autoquantize.findings import Found, Tried, differ
from zsqbench.reports.results import Result

TINY = Level(images=8, iterations=2, learning=2)


def tried(name, agrees=(), control=False, metric="agreement", fidelity=50.0, bits=4.0):
    """A candidate that agrees on these of 16 images; none means that it failed."""
    right = sum(1 << (15 - image) for image in agrees)
    row = Result(
        suite="s", cell=name, definition="d", task="t", model="m", generator=None, quantizer=name, scheme="x", seed=0,
        status="done" if agrees else "failed",
        metric=metric, metrics={"agreement": 100 * len(agrees) / 16, "fidelity": fidelity},
        tensors={"mean_weight_bits": bits}, correct=base64.b64encode(right.to_bytes(2)).decode(),
    )  # fmt: skip
    return Tried(Candidate(name, control=control), row, 1.0)


def found(*candidates, generators=("dgh",), images=False):
    return Found(Path(), Path(), TINY, Path(), generators, images, candidates, {}, 1.0)


def ranked(*candidates, **judged):
    return [one.candidate.quantizer for one in found(*candidates, **judged).ranking]


def test_the_highest_agreement_is_first_where_no_other_one_comes_near():
    far = tried("far", range(6), fidelity=99.0)
    assert ranked(far, tried("near", range(16)), tried("failed")) == ["near", "far"]


def test_among_those_that_chance_could_have_put_below_the_first_fidelity_decides():
    first, near = tried("first", range(16), fidelity=60.0), tried("near", range(11), fidelity=70.0)
    far = tried("far", range(10), fidelity=99.0)
    assert ranked(first, far, near) == ["near", "first", "far"]


def test_among_those_that_chance_could_have_put_below_the_first_the_fewest_bits_decide_before_fidelity():
    half, third = tried("half", range(16), fidelity=90.0, bits=5.0), tried("third", range(13), fidelity=80.0, bits=4.3)
    near, far = tried("near", range(11), fidelity=60.0), tried("far", range(10), fidelity=70.0)
    assert ranked(half, third, near, far) == ["near", "third", "half", "far"]
    assert ranked(half, third, far) == ["third", "half", "far"]


def test_more_bits_are_chosen_where_fewer_are_told_from_them_as_worse():
    half, pure = tried("half", range(16), bits=5.0), tried("pure", range(10), fidelity=99.0)
    assert ranked(pure, half) == ["half", "pure"]


@pytest.mark.parametrize(("fidelity", "first"), [(85.0, "pure"), (84.9, "half")])
def test_networks_that_are_no_classifiers_bear_a_little_less_fidelity_for_fewer_bits(fidelity, first):
    half = tried("half", range(16), metric="fidelity", fidelity=90.0, bits=5.0)
    pure = tried("pure", range(16), metric="fidelity", fidelity=fidelity)
    assert ranked(half, pure)[0] == first


@pytest.mark.parametrize("right", [1, 11, 16])
def test_the_control_is_not_ranked_where_it_is_not_told_from_the_best_candidate(right):
    control = tried("control", range(right), control=True)
    assert ranked(tried("a", range(11)), tried("b", range(3)), control) == ["a", "b"]
    assert found(control).control is control


def test_the_control_is_chosen_where_all_candidates_are_told_from_it_as_worse():
    control = tried("control", range(16), control=True)
    assert ranked(tried("a", range(3)), control, tried("b", range(10))) == ["control", "b", "a"]
    assert found(tried("a", range(3)), control).near == []


def test_a_candidate_that_the_control_is_told_from_as_better_is_not_chosen_for_its_bits():
    best, small = tried("best", range(15), bits=5.0), tried("small", range(10))
    assert ranked(best, small) == ["small", "best"]
    assert ranked(best, small, tried("control", range(16), control=True)) == ["best", "small"]


def test_on_noise_alone_the_lead_of_the_control_which_is_calibrated_on_noise_counts_for_nothing():
    one, control = tried("a", range(3)), tried("control", range(16), control=True)
    assert ranked(one, control, generators=("noise",)) == ["a"]
    assert ranked(one, control, generators=("noise",), images=True) == ["control", "a"]


@pytest.mark.parametrize(("fidelity", "first"), [(85.0, "a"), (84.9, "control")])
def test_of_networks_that_are_no_classifiers_the_control_has_to_lead_clearly(fidelity, first):
    control = tried("control", range(16), control=True, metric="fidelity", fidelity=90.0)
    assert ranked(tried("a", range(16), metric="fidelity", fidelity=fidelity), control)[0] == first


def test_the_control_alone_is_nothing_to_choose():
    assert ranked(tried("control", range(16), control=True), tried("failed")) == []


def test_networks_that_are_no_classifiers_are_ranked_by_fidelity_alone():
    first, second = (tried(name, range(16), metric="fidelity", fidelity=value) for name, value in (("a", 1), ("b", 2)))
    assert ranked(first, second) == ["b", "a"]
    assert first.is_told_from(second)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (range(6), range(6), False),
        (range(6), range(1), False),  # 5 to 0: p = 0.0625
        (range(7), range(1), True),  # 6 to 0: p = 0.03125
        (range(7), [7], False),  # 7 to 1: p = 0.07
        (range(8), [8], True),  # 8 to 1: p = 0.039
        (range(16), [], True),
    ],
)
def test_two_rows_differ_where_the_sign_test_says_that_chance_is_rare(one, other, told):
    first, second = tried("a", one), tried("b", other)
    assert differ(first.row, second.row) is differ(second.row, first.row) is told
