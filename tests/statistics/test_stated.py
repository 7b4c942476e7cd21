import numpy as np
import pytest

from zsqbench.statistics import Samples, distance, distance_of_means


def samples(*shares, images=1000):
    """A seed for each share of images that are right."""
    values = np.zeros((len(shares), images), dtype=bool)
    for row, share in zip(values, shares, strict=True):
        row[: round(share * images)] = True
    return Samples(values, tuple(range(len(shares))) if len(shares) > 1 else ())


def test_one_row_has_the_interval_over_images():
    found = distance(samples(0.9), 91.0)
    half = 1.9623 * 100 * np.sqrt(0.09 / 999)  # the t quantile of 999 degrees
    assert found.points == pytest.approx(-1.0)
    assert found.low == pytest.approx(-1.0 - half, abs=1e-3)
    assert found.high == pytest.approx(-1.0 + half, abs=1e-3)
    assert (found.scope, found.falls_short) == ("for these seeds", False)


def test_a_mean_far_below_what_is_stated_falls_short_and_one_above_never_does():
    assert distance(samples(0.9), 93.0).falls_short
    assert not distance(samples(0.9), 80.0).falls_short


def test_from_three_seeds_on_their_deviation_widens_the_interval():
    two, three = distance(samples(0.88, 0.92), 93.0), distance(samples(0.88, 0.90, 0.92), 93.0)
    assert (two.scope, three.scope) == ("for these seeds", "over seeds")
    by_seeds = 4.3027 * 2.0 / np.sqrt(3)
    by_images = distance(samples(0.9, 0.9), 93.0)
    assert three.high - three.points > max(by_seeds, by_images.high - by_images.points)
    assert two.falls_short
    assert not three.falls_short


def test_a_stated_deviation_adds_the_largest_error_that_it_allows():
    exact, told = distance(samples(0.9), 90.0), distance(samples(0.9), 90.0, deviation=3.0)
    assert told.high == pytest.approx(np.hypot(exact.high, 1.95996 * 3.0 / np.sqrt(2)), abs=1e-4)


def test_where_no_image_is_wrong_the_interval_is_not_empty():
    found = distance(samples(1.0), 100.1)
    assert found.low < found.points < found.high
    assert not found.falls_short


def test_means_alone_have_an_interval_over_seeds():
    found = distance_of_means([20.0, 21.0, 22.0], 25.0)
    assert found.points == pytest.approx(-4.0)
    assert found.high == pytest.approx(-4.0 + 4.30265 / np.sqrt(3), abs=1e-3)
    assert found.falls_short


def test_one_mean_has_no_interval():
    assert distance_of_means([20.0], 25.0) is None
