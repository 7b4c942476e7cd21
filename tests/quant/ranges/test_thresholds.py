import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from brief import parametrize_briefly

from zsqbench.quant.grids.affine import along, fake_quantize, symmetric_parameters
from zsqbench.quant.ranges import observers
from zsqbench.quant.ranges import thresholds as module
from zsqbench.quant.ranges.histogram import BINS, Histogram, RunningHistogram
from zsqbench.quant.ranges.thresholds import (
    ExactThresholdSearch,
    activation_threshold,
    power_of_two_weight_thresholds,
    symmetric_weight_thresholds,
)

AXIS = {"pc": 0, "pt": None}
ERROR = {"mse": "mse", "noclipping": "no_clipping"}


@pytest.fixture
def mct(golden):
    return golden("mct_pot_a")


@pytest.fixture
def resnet(golden):
    return golden("mct_ptq_resnet20_a")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x, threshold, bits, *, signed=True, axis=None):
    scale, zero_point = (along(value, axis, x.dim()) for value in symmetric_parameters(threshold, bits, signed))
    return fake_quantize(x, scale, zero_point, bits)


def squared_error(x, threshold, bits, *, signed=True, axis=None):
    return (rounded(x, threshold, bits, signed=signed, axis=axis) - x).double().square()


def histogram_of(batches):
    running = RunningHistogram()
    for batch in batches:
        running.update(torch.from_numpy(batch))
    assert running.histogram is not None
    return running.histogram


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("error", ["mse", "noclipping"])
@pytest.mark.parametrize("granularity", ["pc", "pt"])
@pytest.mark.parametrize("tensor", ["conv", "linear"])
def test_weights_get_the_thresholds_of_mct(mct, tensor, granularity, error, bits):
    weight, axis = torch.from_numpy(mct[f"{tensor}_w"]), AXIS[granularity]
    thresholds = power_of_two_weight_thresholds(weight, bits, axis, error=ERROR[error])
    expected = mct[f"{tensor}_{granularity}_{error}_{bits}_threshold"]
    np.testing.assert_array_equal(thresholds.reshape(expected.shape), expected)
    values = rounded(weight, thresholds, bits, axis=axis)
    np.testing.assert_array_equal(values, mct[f"{tensor}_{granularity}_{error}_{bits}_deq"])


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("tensor", ["conv", "linear"])
def test_the_candidates_err_as_in_mct(mct, tensor, bits):
    rows = torch.from_numpy(mct[f"{tensor}_w"]).flatten(1)
    candidates = torch.from_numpy(mct[f"{tensor}_candidates_{bits}"]).float().T
    errors = module._errors(rows, candidates, bits, signed=True, error="mse", p=2)
    np.testing.assert_allclose(errors.T, mct[f"{tensor}_candidate_sse_{bits}"], rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["relu", "signed", "heavy"])
def test_activations_get_the_thresholds_of_mct(mct, name, bits):
    batches = mct[f"act_{name}_batches"]
    histogram = histogram_of(batches)
    exact = ExactThresholdSearch(histogram, bits)
    for batch in batches:
        exact.update(torch.from_numpy(batch))
    for error in ("mse", "noclipping"):
        threshold, signed = activation_threshold(histogram, bits, error=ERROR[error])
        assert threshold == mct[f"act_{name}_{error}_{bits}_threshold"]
        assert signed == mct[f"act_{name}_{error}_{bits}_signed"]
        values = rounded(torch.from_numpy(batches[0]), threshold, bits, signed=signed)
        np.testing.assert_array_equal(values, mct[f"act_{name}_{error}_{bits}_deq0"])
    # MCT takes the extremes of the batches themselves for `minmax`, and the ends of the histogram for `noclipping`
    assert threshold == mct[f"act_{name}_minmax_{bits}_threshold"]
    assert exact.best() == activation_threshold(histogram, bits)
    filtered = activation_threshold(histogram.without_outliers(3), bits).threshold
    assert filtered == mct[f"act_{name}_z3_mse_{bits}_threshold"]


@pytest.mark.parametrize("layer", ["00", "08", "19"])
def test_the_weights_of_a_network_get_the_thresholds_of_mct(resnet, layer):
    weight = torch.from_numpy(resnet[f"pot_floatweight_{layer}"])
    thresholds = power_of_two_weight_thresholds(weight, 8, 0)
    np.testing.assert_array_equal(thresholds, resnet[f"pot_wthr_{layer}"])


@pytest.mark.parametrize("layer", ["00", "08", "19"])
def test_the_refined_search_finds_the_symmetric_thresholds_of_mct(resnet, layer):
    weight = torch.from_numpy(resnet[f"default_floatweight_{layer}"])
    thresholds = symmetric_weight_thresholds(weight, 8, 0)
    np.testing.assert_allclose(thresholds, resnet[f"default_wthr_{layer}"], rtol=1e-6)
    np.testing.assert_allclose(
        rounded(weight, thresholds, 8, axis=0), resnet[f"default_qweight_{layer}"], rtol=1e-6, atol=1e-9
    )


def test_the_input_of_a_network_gets_the_threshold_of_mct(resnet):
    threshold, signed = activation_threshold(histogram_of(resnet["calib"]), 8)
    assert (threshold, signed) == (resnet["default_act_threshold"][0], resnet["default_act_signed"][0])


def test_a_gaussian_in_8_bits_is_clipped_at_4():
    x = normal(1_000_000)
    histogram = Histogram.of(x)
    exact = ExactThresholdSearch(histogram, 8)
    exact.update(x)
    assert activation_threshold(histogram, 8) == exact.best() == (4, True)
    assert exact.errors[exact.thresholds == 4].item() / len(x) == pytest.approx(8.8e-5, rel=0.01)
    assert power_of_two_weight_thresholds(x, 8) == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_found_threshold_errs_least_of_all_candidates(axis, bits):
    weight = normal(5, 6, 7) ** 3
    thresholds = power_of_two_weight_thresholds(weight, bits, axis)
    assert torch.equal(thresholds.log2(), thresholds.log2().round())
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    for row, threshold in zip(rows, thresholds.view(-1), strict=True):
        whole = max(-row.min(), row.max() * 2 ** (bits - 1) / (2 ** (bits - 1) - 1))
        start = 2 ** math.ceil(math.log2(whole))
        candidates = [torch.tensor(2.0 * start / 2**i) for i in range(10)]
        assert threshold == min(candidates, key=lambda t: squared_error(row, t, bits).sum().item())


def test_the_found_activation_threshold_errs_least_of_all_candidates():
    x = normal(10_000).relu() ** 3
    histogram = Histogram.of(x)
    search = ExactThresholdSearch(histogram, 4)
    search.update(x)
    assert search.thresholds[1] == 2 ** math.ceil(math.log2(x.max()))
    for threshold, error in zip(search.thresholds, search.errors, strict=True):
        expected = squared_error(x, threshold.float(), 4, signed=False).sum()
        assert error.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(search.thresholds) == 20
    assert search.best().threshold == search.thresholds[search.errors.argmin()]


def test_the_exact_search_adds_up_over_batches():
    x = normal(1000)
    whole, parts = (ExactThresholdSearch(Histogram.of(x), 4, error="mae") for _ in range(2))
    whole.update(x)
    for part in x.view(4, 2, 125).half().float().bfloat16():
        parts.update(part)
    np.testing.assert_allclose(parts.errors, whole.errors, rtol=0.02)


def test_the_first_of_equal_thresholds_is_taken():
    weight = torch.stack([torch.zeros(9), torch.full((9,), 0.5)])
    assert power_of_two_weight_thresholds(weight, 4, 0).tolist() == [2 * 2.0**-16, 2]
    assert power_of_two_weight_thresholds(weight, 4, 0, error="no_clipping").tolist() == [2.0**-16, 1]
    assert activation_threshold(Histogram.of(torch.zeros(9)), 8) == (2 * 2.0**-16, False)


def test_no_threshold_is_below_the_smallest():
    tiny = 2.0**-20 * normal(3, 50)
    assert (power_of_two_weight_thresholds(tiny, 8, 0) >= 2.0**-16).all()
    assert (symmetric_weight_thresholds(tiny, 8, 0) >= 2.0**-16).all()
    assert activation_threshold(Histogram.of(tiny), 8).threshold >= 2.0**-16


def test_a_largest_weight_that_the_top_code_cannot_hold_doubles_the_threshold():
    weight = torch.tensor([[1.0, 0.3], [-1.0, 0.3]])
    assert power_of_two_weight_thresholds(weight, 8, 0, error="no_clipping").tolist() == [2, 1]
    assert symmetric_weight_thresholds(weight, 8, 0, error="no_clipping").tolist() == pytest.approx([128 / 127, 1])


def test_an_activation_is_covered_by_its_largest_edge():
    histogram = Histogram.of(torch.tensor([0.0, 8.0]))
    assert activation_threshold(histogram, 8, error="no_clipping") == (8, False)
    assert activation_threshold(histogram, 8, error="no_clipping", signed=True) == (8, True)
    assert activation_threshold(Histogram.of(torch.tensor([-8.001, 6.0])), 8, error="no_clipping") == (16, True)


@pytest.mark.parametrize(("error", "p"), [("mae", 1), ("lp", 0.5), ("lp", 2.4)])
def test_other_powers_of_the_error_are_minimized(error, p):
    x = normal(2000) ** 3
    candidates = 2.0 ** torch.arange(-8, 8)
    errors = torch.stack([(rounded(x, t, 4) - x).abs().double().pow(p).sum() for t in candidates])
    found = candidates[errors.argmin()]
    histogram = Histogram.of(x)
    search = ExactThresholdSearch(histogram, 4, error=error, p=p)
    search.update(x)
    assert search.best().threshold == found
    assert activation_threshold(histogram, 4, error=error, p=p).threshold == found
    assert power_of_two_weight_thresholds(x, 4, error=error, p=p, candidates=20) == found


def test_smaller_powers_clip_more():
    x = normal(20_000) ** 3
    found = [power_of_two_weight_thresholds(x, 4, error="lp", p=p).item() for p in (4, 2, 1)]
    assert all(larger >= smaller for larger, smaller in pairwise(found))
    assert found[0] > found[-1]


def test_the_divergence_is_that_of_clipped_and_evenly_spread_counts():
    # 2 bits unsigned up to t = 8: levels 0, 2, 4, 6; edges 0, 1, .., 8 need a histogram of 16 units in 2048 bins
    counts = torch.zeros(BINS, dtype=torch.float64)
    unit = BINS // 16
    for edge, count in ((0, 4.0), (2, 1.0), (2.5, 3.0), (6, 2.0), (12, 1.0)):
        counts[int(edge * unit)] = count
    histogram = Histogram(0.0, 16.0, counts)
    # 2 and 2.5 share a level; 12 is clipped to the last bin inside that holds something, 6
    p = torch.tensor([4, 1, 3, 3.0]) / 11
    q = torch.tensor([4, 2, 2, 2.0]) / 10
    assert module._divergence(histogram, 8.0, 2, signed=False) == pytest.approx((p * (p / q).log()).sum().item())


def test_divergence_keeps_a_bin_a_level_and_clips_outliers():
    x = torch.cat([normal(100_000), torch.tensor([100.0])])
    threshold, signed = activation_threshold(Histogram.of(x), 8, error="kl")
    assert signed
    assert 4 <= threshold <= 32
    for bits in (2, 4, 8, 16):
        found = activation_threshold(Histogram.of(x.relu()), bits, error="kl").threshold
        assert (Histogram.of(x.relu()).left_edges < found).sum() >= min(2**bits, BINS)


def test_divergence_is_refused_where_there_is_no_histogram():
    for search in (power_of_two_weight_thresholds, symmetric_weight_thresholds):
        with pytest.raises(ValueError, match="the error 'kl' compares distributions, not values"):
            search(normal(2, 9), 8, 0, error="kl")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_search_without_the_power_of_two_errs_less(bits):
    weight = normal(6, 200) ** 3

    def error(thresholds):
        return squared_error(weight, thresholds, bits, axis=0).sum(1) * (1 - 1e-6)

    whole = symmetric_weight_thresholds(weight, bits, 0, error="no_clipping")
    refined = symmetric_weight_thresholds(weight, bits, 0)
    assert (error(refined) <= squared_error(weight, whole, bits, axis=0).sum(1)).all()
    powers = power_of_two_weight_thresholds(weight, bits, 0)
    assert error(refined).sum() <= squared_error(weight, powers, bits, axis=0).sum()
    assert symmetric_weight_thresholds(weight, bits).shape == ()


def test_the_refined_search_stops_when_it_gains_next_to_nothing():
    weight = 1e-5 * normal(4, 50) + 2.0**-15
    thresholds = symmetric_weight_thresholds(weight, 8, 0)
    assert (thresholds >= 0.5 * weight.abs().amax(1)).all()


@parametrize_briefly("block", [50, 1000, 64], 1)
def test_the_search_does_not_depend_on_how_it_is_chunked(monkeypatch, block):
    weight = normal(3, 101)
    for axis in (None, 0):
        whole = power_of_two_weight_thresholds(weight, 4, axis), symmetric_weight_thresholds(weight, 4, axis)
        with monkeypatch.context() as patched:
            patched.setattr(observers, "_CPU_BLOCK", block)
            again = power_of_two_weight_thresholds(weight, 4, axis), symmetric_weight_thresholds(weight, 4, axis)
        assert all(torch.equal(first, second) for first, second in zip(whole, again, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weight = torch.tensor([[1.0, value], [1.0, 2.0]])
    for search in (power_of_two_weight_thresholds, symmetric_weight_thresholds):
        with pytest.raises(ValueError, match="a threshold needs finite weights"):
            search(weight, 8, 0)
