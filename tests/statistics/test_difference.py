import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from zsqbench.errors import ZSQBenchError
from zsqbench.statistics import Resampled, Samples, compare, differs, mcnemar, resamples, tango, unpacked

OVER, THESE = "over seeds", "for these seeds"


def drawn(accuracy, seeds=(), images=900, rng=None):
    rng = rng or np.random.default_rng(round(1000 * accuracy))
    return Samples(rng.random((max(len(seeds), 1), images)) < accuracy, tuple(seeds))


def rows(*values, seeds=True):
    return Samples(np.array(values), tuple(range(len(values))) if seeds else ())


@pytest.mark.parametrize(
    ("only_first", "only_second", "images", "alpha", "low", "high"),
    [
        (1, 7, 21, 0.05, -0.517, -0.026),  # Bentur 2009, in Fagerland, Lydersen and Laake 2014
        (6, 16, 161, 0.05, -0.1240, -0.0054),  # Cavo 2012, by R's contingencytables
        (28, 25, 618, 0.1, -0.0148, 0.0247),  # by R's PropCIs::scoreci.mp(25, 28, 618, 0.9)
    ],
)
def test_tangos_interval_is_that_of_published_examples(only_first, only_second, images, alpha, low, high):
    found = tango(only_first, only_second, images, alpha)
    digits = 3 if images == 21 else 4
    assert [round(end, digits) for end in found] == [low, high]


@pytest.mark.parametrize("images", [10, 900, 50_000])
def test_tangos_interval_where_no_image_or_each_differs_is_the_one_that_can_be_written_down(images):
    squared = 1.959963984540054**2
    assert tango(0, 0, images) == pytest.approx((-squared / (images + squared), squared / (images + squared)))
    assert tango(images, 0, images) == pytest.approx(((images - squared) / (images + squared), 1))
    assert tango(0, images, images) == pytest.approx((-1, -(images - squared) / (images + squared)))


def test_tangos_interval_ends_where_its_score_is_1_96():
    for only_first, only_second, images in [(40, 17, 900), (3, 0, 50), (0, 1, 900), (300, 600, 900)]:
        for end in tango(only_first, only_second, images):
            # the likelihood of a difference has its maximum over the share of `only_second` where this is 0
            shares = np.linspace(max(0, -end), (1 - end) / 2, 2_000_001)[1:-1]
            likelihood = only_second * np.log(shares) + only_first * np.log(shares + end)
            likelihood += (images - only_first - only_second) * np.log1p(-2 * shares - end)
            share = shares[likelihood.argmax()]
            deviation = math.sqrt((2 * share + end - end**2) * images)
            assert abs(only_first - only_second - images * end) / deviation == pytest.approx(1.96, abs=2e-3)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (7, 1), (6, 16), (30, 30), (400, 520)])
def test_p_is_that_of_the_exact_sign_test(only_first, only_second):
    trials = only_first + only_second
    expected = binomtest(only_first, trials).pvalue if trials else 1
    assert mcnemar(only_first, only_second)[0] == pytest.approx(expected, rel=1e-9)
    assert mcnemar(only_second, only_first) == pytest.approx(mcnemar(only_first, only_second), rel=1e-9)


def test_mid_p_is_that_of_published_examples():
    assert mcnemar(6, 16)[1] == pytest.approx(0.034690, abs=5e-7)  # Cavo 2012, by R's contingencytables
    assert mcnemar(1, 7)[1] == pytest.approx(0.0703125 - 8 / 256)
    assert mcnemar(2, 2)[1] == pytest.approx(1 - 6 / 16 / 2)


def test_networks_differ_from_six_images_on_that_one_alone_has_right():
    assert not differs(5, 0)
    assert differs(6, 0)
    assert not differs(0, 0)


def test_one_row_is_compared_by_mcnemar_and_tango():
    first, second = np.zeros((2, 1, 900), dtype=bool)
    first[0, :16] = second[0, 10:16] = second[0, 20:22] = True
    found = compare(Samples(first), Samples(second))
    assert (found.only_first, found.only_second) == (10, 2)
    assert found.points == pytest.approx(100 * 8 / 900)
    assert (found.p, found.mid_p) == mcnemar(10, 2)
    assert (found.low, found.high) == pytest.approx(tuple(100 * end for end in tango(10, 2, 900)))
    assert found.narrow == pytest.approx(tuple(100 * end for end in tango(10, 2, 900, 0.1)))
    assert (found.seeds, found.scope, found.seed_deviation) == (0, THESE, None)


def test_images_vary_alone_for_these_seeds():
    first, second = drawn(0.7, range(3)), drawn(0.66, range(3))
    found = compare(first, second, THESE)
    by_image = (first.values.astype(float) - second.values).mean(axis=0)
    expected = ttest_1samp(by_image, 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    interval = expected.confidence_interval(0.9)
    assert found.narrow == pytest.approx((100 * interval.low, 100 * interval.high))


def test_t_intervals_over_images_and_over_seeds_add_in_squares():
    first, second = drawn(0.7, range(4)), drawn(0.66, range(4))
    found = compare(first, second)
    differences = first.values.astype(float) - second.values
    halves = []
    for axis in (0, 1):
        interval = ttest_1samp(differences.mean(axis=axis), 0).confidence_interval(0.95)
        halves.append((interval.high - interval.low) / 2)
    assert found.scope == OVER
    assert found.high - found.points == pytest.approx(100 * math.hypot(*halves))
    assert found.points - found.low == pytest.approx(100 * math.hypot(*halves))
    assert found.seed_deviation == pytest.approx(100 * differences.mean(axis=1).std(ddof=1))


@pytest.mark.parametrize("scope", [OVER, THESE])
def test_p_is_below_5_percent_just_where_the_interval_does_not_hold_0(scope):
    rng = np.random.default_rng(1)
    seen = set()
    for seeds in (2, 3, 5, 10):
        for gap in np.linspace(0, 0.3, 30):
            found = compare(drawn(0.6 + gap, range(seeds), 200, rng), drawn(0.6, range(seeds), 200, rng), scope)
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
            assert found.low < found.narrow[0] < found.points < found.narrow[1] < found.high
            seen.add(found.significant)
    assert seen == {True, False}


def test_the_first_and_the_second_method_may_change_places():
    for seeds in ((), range(2), range(3)):
        first, second = drawn(0.7, seeds), drawn(0.66, seeds)
        one, other = compare(first, second), compare(second, first)
        assert (one.points, one.low, one.high) == pytest.approx((-other.points, -other.high, -other.low))
        assert one.p == pytest.approx(other.p)


def test_three_seeds_speak_for_all_seeds_and_two_for_themselves():
    assert compare(drawn(0.7, range(3)), drawn(0.66, range(3))).scope == OVER
    assert compare(drawn(0.7, range(2)), drawn(0.66, range(2))).scope == THESE
    assert compare(drawn(0.7, range(2)), drawn(0.66, range(2)), OVER).scope == OVER


def test_seeds_in_common_are_compared_in_whatever_order_they_are():
    first, second = drawn(0.7, (0, 1, 2)), drawn(0.66, (2, 7, 1))
    found = compare(first, second)
    same = compare(Samples(first.values[[1, 2]], (1, 2)), Samples(second.values[[2, 0]], (1, 2)))
    assert found == same
    assert found.seeds == 2


def test_one_seed_in_common_leaves_one_row():
    found = compare(drawn(0.7, (0, 1)), drawn(0.66, (1, 2)))
    assert found.only_first is not None
    assert found.seeds == 1


def test_a_method_without_seeds_is_compared_with_each_seed():
    without, seeded = drawn(0.7), drawn(0.66, range(3))
    repeated = Samples(np.repeat(without.values, 3, axis=0), (0, 1, 2))
    assert compare(without, seeded) == compare(repeated, seeded)


def test_an_interval_never_is_a_point():
    least = 100 * tango(0, 0, 900)[1]
    same = drawn(0.7, range(3))
    for scope in (OVER, THESE):
        found = compare(same, same, scope)
        assert (found.points, found.p) == (0, 1)
        assert (found.low, found.high) == pytest.approx((-least, least))
    assert compare(drawn(0.7), drawn(0.7)).high == pytest.approx(least)


def test_the_same_difference_of_each_image_is_no_certainty():
    ones, zeros = np.ones((3, 900), dtype=bool), np.zeros((3, 900), dtype=bool)
    found = compare(rows(*ones), rows(*zeros))
    assert found.high == 100
    assert 99 < found.low < 100
    assert found.p < 1e-9


def test_seeds_that_agree_leave_the_chance_of_images():
    first, second = drawn(0.7), drawn(0.66)
    one, other = (Samples(np.repeat(each.values, 3, axis=0), (0, 1, 2)) for each in (first, second))
    over, these = compare(one, other, OVER), compare(one, other, THESE)
    assert over.p == these.p
    assert (over.low, over.high) == (these.low, these.high)


def test_values_need_not_be_right_or_wrong():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 50))
    found = compare(Samples(first), Samples(second))
    expected = ttest_1samp((first - second)[0], 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.only_first is None
    assert found.mid_p is None


def test_a_difference_is_within_a_margin_where_its_90_percent_interval_is():
    found = compare(drawn(0.7, range(3)), drawn(0.69, range(3)), THESE)
    edge = max(map(abs, found.narrow))
    assert found.within(edge + 1e-6)
    assert not found.within(edge - 1e-6)
    with pytest.raises(ZSQBenchError, match="a margin of 0 points; expected more than 0"):
        found.within(0)


@pytest.mark.parametrize(
    ("first", "second", "scope", "line"),
    [
        (
            drawn(0.7, (0, 1)),
            drawn(0.7, (2, 3)),
            None,
            "no common seeds: one has 0, 1, the other 2, 3; run both with",
        ),
        (drawn(0.7), drawn(0.7, images=90), None, "values of 900 and of 90 images; expected the same images"),
        (drawn(0.7), drawn(0.7), OVER, "one seed in common; a statement over seeds needs at least 2"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(first, second, scope, line):
    with pytest.raises(ZSQBenchError, match=line):
        compare(first, second, scope)


@pytest.mark.parametrize(
    ("values", "seeds", "line"),
    [
        (np.ones((2, 9)), (1,), "2 rows of values for the seeds"),
        (np.ones((2, 9)), (1, 1), "2 rows of values for the seeds"),
        (np.ones((1, 1)), (), "values of 1 images; expected at least 2"),
        (np.full((1, 9), 67.9), (), "values from 67.9 to 67.9; expected 0 to 1"),
        (np.full((1, 9), np.nan), (), "values from nan to nan; expected 0 to 1"),
    ],
)
def test_values_that_are_none_are_refused(values, seeds, line):
    with pytest.raises(ZSQBenchError, match=line):
        Samples(values, seeds)


def test_bits_of_a_row_are_read_as_they_were_written():
    from zsqbench.steps.evaluations import CORRECT, packed

    correct = np.random.default_rng(0).random(21) < 0.5
    bits = packed({CORRECT: np.packbits(correct)})
    assert (unpacked(bits, 21) == correct).all()
    with pytest.raises(ZSQBenchError, match="3 bytes of bits for 25 images; expected 4"):
        unpacked(bits, 25)


def resampled(values, seeds=()):
    """The mean of values [seeds, images] as a metric that is computed again on resampled images."""
    images, weights = values.shape[1], resamples(values.shape[1])
    return Resampled(values.mean(axis=1), values @ weights.T / weights.sum(axis=1), images, tuple(seeds))


@pytest.mark.parametrize("scope", [THESE, OVER])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_mean_on_resampled_images_is_compared_like_the_mean_of_values(seeds, scope):
    if (seeds, scope) == (1, OVER):
        return
    draws = np.random.default_rng(seeds)
    first, second = 0.2 + 0.5 * draws.random((seeds, 400)), 0.5 * draws.random((seeds, 400))
    names = range(seeds) if seeds > 1 else ()
    expected = compare(Samples(first, tuple(names)), Samples(second, tuple(names)), scope)
    found = compare(resampled(first, names), resampled(second, names), scope)
    assert found.points == pytest.approx(expected.points)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.image_deviation == pytest.approx(expected.image_deviation)
    assert found.seed_deviation == pytest.approx(expected.seed_deviation)
    assert (found.images, found.seeds, found.scope) == (400, len(names), scope)
    assert found.only_first is None


def test_equal_networks_do_not_differ_on_resampled_images():
    values = np.random.default_rng(0).random((1, 50))
    found = compare(resampled(values), resampled(values))
    assert (found.points, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_small_difference_that_all_resamples_show_is_found():
    values = np.random.default_rng(0).random((1, 50)) * 0.9
    found = compare(resampled(values + 0.001 + 0.0001 * values), resampled(values))
    assert (found.significant, found.points < 0.2) == (True, True)


def test_values_on_resampled_images_are_checked():
    with pytest.raises(ZSQBenchError, match=r"expected \(1, 50\), and at least 2"):
        Resampled(np.array([0.5]), np.zeros((1, 7)), 50)
    with pytest.raises(ZSQBenchError, match="expected one for each seed"):
        Resampled(np.array([0.5, 0.6]), np.zeros((2, 50)), 50)
    with pytest.raises(ZSQBenchError, match="one method has values of images"):
        compare(rows([True] * 50), resampled(np.ones((1, 50))))
    with pytest.raises(ZSQBenchError, match="expected the same images"):
        compare(resampled(np.ones((1, 40))), resampled(np.ones((1, 50))))
