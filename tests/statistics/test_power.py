import math

import numpy as np
import pytest
from scipy.stats import nct, t
from statsmodels.stats.power import TTestPower

from zsqbench.statistics import Difference, Samples, compare, detectable, needed, verdict


def found(points, p, scope="for these seeds", seeds=0, narrow=(-9.0, 9.0), image_deviation=40.0, seed_deviation=None):
    return Difference(
        points,
        -10.0,
        10.0,
        narrow,
        p,
        scope,
        seeds,
        900,
        image_deviation=image_deviation,
        seed_deviation=seed_deviation,
    )


def test_the_detectable_difference_is_found_with_80_percent():
    assert TTestPower().power(detectable(900, 40.0) / 40, 900, 0.05) == pytest.approx(0.8)
    assert detectable(900, 40.0) == pytest.approx(2.8 * 40 / 30, rel=2e-3)  # by the normal distribution: 1.96 + 0.84


def test_seeds_add_to_the_detectable_difference_in_squares():
    by_seeds = detectable(5, 1.5)
    assert TTestPower().power(by_seeds / 1.5, 5, 0.05) == pytest.approx(0.8)
    assert detectable(900, 40.0, 5, 1.5) == pytest.approx(math.hypot(detectable(900, 40.0), by_seeds))
    assert detectable(900, 40.0, 3, 0.0) == detectable(900, 40.0)


def test_it_is_found_with_80_percent_by_any_number():
    """From 2 seeds, of which statsmodels does not know it, to more images than data sets have."""
    assert nct.sf(t.isf(0.025, 1), 1, float(detectable(2, 1.0)) * math.sqrt(2)) == pytest.approx(0.8)
    counts = [*range(3, 400), 900, 1000, 5000, 10_000, 50_000, 1_000_000]
    found = [TTestPower().power(float(detectable(count, 1.0)), count, 0.05) for count in counts]
    assert found == pytest.approx([0.8] * len(counts), rel=1e-9)


def test_so_many_images_as_are_needed_make_the_difference_detectable():
    for points in (0.5, 2.0, 30.0):
        count = needed(points, 40.0)
        assert TTestPower().power(points / 40, count, 0.05) == pytest.approx(0.8, abs=1e-4)
    assert needed(-2.0, 40.0) == needed(2.0, 40.0)
    assert needed(0.0, 40.0) == math.inf
    assert needed(1.0, 0.0) == 2


@pytest.mark.parametrize(
    ("difference", "margin", "sentence"),
    [
        (found(2.0, 0.01), None, "better"),
        (found(-2.0, 0.01), None, "worse"),
        (found(2.0, 0.01, seeds=2), None, "better, for these seeds"),
        (found(2.0, 0.01, "over seeds", seeds=3), None, "better"),
        (found(0.2, 0.3, narrow=(-0.3, 0.7)), 1, "equivalent within 1"),
        (found(0.2, 0.01, narrow=(0.1, 0.3)), 0.5, "better but equivalent within 0.5"),
        (found(-2.0, 0.3), 1, "cannot be told with 900 images; about 3,100 would be needed"),
        (found(0.0, 1.0), None, "cannot be told with 900 images; no difference is seen"),
        (
            found(2.0, 0.3, "over seeds", seeds=3, seed_deviation=2.5),
            None,
            "cannot be told with 3 seeds; about 14 would be needed",
        ),
        (
            found(2.0, 0.1, "over seeds", seeds=10, seed_deviation=0.5, image_deviation=50.0),
            None,
            "cannot be told with 900 images; about 4,900 would be needed",
        ),
    ],
)
def test_the_verdict_is_one_sentence(difference, margin, sentence):
    assert verdict(difference, margin) == sentence


def test_what_cannot_be_told_needs_more_than_there_is():
    rng = np.random.default_rng(0)
    said = []
    for seeds in (1, 2, 3, 5) * 20:
        one, other = (Samples(rng.random((seeds, 900)) < share, tuple(range(seeds))) for share in (0.72, 0.7))
        difference = compare(one, other)
        if difference.points and not difference.significant:
            have, need = (int(word.replace(",", "")) for word in verdict(difference).split() if word[0].isdigit())
            said.append(need > have)
    assert len(said) > 20
    assert all(said)
