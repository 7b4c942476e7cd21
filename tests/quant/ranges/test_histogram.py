import numpy as np
import pytest
import torch

from zsqbench.quant.ranges import histogram as module
from zsqbench.quant.ranges.histogram import BINS, Histogram, RunningHistogram


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_batches_merge_as_in_mct(golden):
    mct = golden("mct_pot_a")
    running = RunningHistogram()
    for batch in mct["act_relu_batches"]:
        running.update(torch.from_numpy(batch))
    assert running.histogram is not None
    np.testing.assert_array_equal(running.histogram.edges, mct["act_relu_bins"])
    np.testing.assert_allclose(running.histogram.counts, mct["act_relu_counts"], rtol=0, atol=1e-9)


def test_a_batch_is_counted_as_numpy_counts_it():
    x = normal(100_000)
    counts, edges = np.histogram(x.numpy(), BINS)
    histogram = Histogram.of(x)
    np.testing.assert_allclose(histogram.edges, edges, rtol=0, atol=2e-6)  # numpy spaces them in float32
    assert histogram.counts.sum() == len(x)
    # numpy compares the values next to an edge with the edge once more
    assert np.abs(histogram.counts.numpy() - counts).sum() <= len(x) / 5000


def test_shape_and_layout_do_not_matter():
    x = normal(3, 4, 5, 6)
    for same in (x.flatten(), x.to(memory_format=torch.channels_last), x.transpose(0, 2), x.double()):
        assert torch.equal(Histogram.of(same).counts, Histogram.of(x).counts)


def test_half_precision_is_counted_in_float32():
    x = normal(1000).half()
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(Histogram.of(x.to(dtype)).counts, Histogram.of(x.to(dtype).float()).counts)


def test_the_counts_do_not_depend_on_how_they_are_chunked(monkeypatch):
    x = normal(10_000)
    whole = Histogram.of(x)
    monkeypatch.setattr(module, "_CPU_BLOCK", 999)
    assert torch.equal(Histogram.of(x).counts, whole.counts)


def test_a_bin_counts_beyond_the_integers_of_float32():
    x = torch.zeros(2**24 + 3)
    x[0] = 1
    assert Histogram.of(x).counts[0] == 2**24 + 2


def test_histograms_of_one_range_merge_by_adding_counts():
    x, y = (torch.cat([normal(1000, seed=seed).clamp(-1, 1), torch.tensor([-1.0, 1.0])]) for seed in (0, 1))
    merged = Histogram.of(x).merged(Histogram.of(y))
    assert torch.equal(merged.counts, Histogram.of(torch.cat([x, y])).counts)


def test_the_range_grows_and_no_count_is_lost():
    running = RunningHistogram()
    for scale in (1, 3, 2, 10):
        histogram = running.update(scale * normal(1000, seed=scale).relu())
    together = Histogram.of(torch.cat([scale * normal(1000, seed=scale).relu() for scale in (1, 3, 2, 10)]))
    assert (histogram.low, histogram.high) == (together.low, together.high)
    assert histogram.counts.sum().item() == pytest.approx(4000, abs=1e-9)
    assert (histogram.counts.cumsum(0) - together.counts.cumsum(0)).abs().max() < 20  # within a bin of each other
    assert not histogram.is_signed


def test_mean_and_deviation_are_those_of_the_left_edges():
    histogram = Histogram.of(normal(500))
    values = np.repeat(histogram.left_edges.numpy(), histogram.counts.long().numpy())
    assert histogram.mean == pytest.approx(values.mean())
    assert histogram.std == pytest.approx(values.std())


def test_bins_beyond_z_deviations_are_emptied():
    x = torch.cat([normal(10_000), torch.tensor([100.0])])
    histogram = Histogram.of(x)
    kept = histogram.without_outliers(5)
    assert kept.counts.sum() == 10_000
    assert torch.equal(kept.edges, histogram.edges)
    assert torch.equal(histogram.without_outliers(float("inf")).counts, histogram.counts)


@pytest.mark.parametrize(
    ("value", "low", "high", "represented"), [(3.0, 0, 3, 3 - 3 / BINS), (-3.0, -3, 0, -3), (0.0, 0, 2**-16, 0)]
)
def test_a_constant_tensor_gets_a_range_with_zero(value, low, high, represented):
    histogram = Histogram.of(torch.full((7,), value))
    assert (histogram.low, histogram.high) == (low, high)
    assert histogram.left_edges[histogram.counts == 7].tolist() == [represented]
    assert histogram.is_signed == (value < 0)


def test_zeros_stay_at_zero_when_the_range_grows():
    histogram = Histogram.of(torch.zeros(50)).merged(Histogram.of(torch.linspace(0, 1, BINS + 1)))
    assert histogram.counts[0] == 51
    assert histogram.counts.sum() == 50 + BINS + 1


def test_a_range_too_narrow_to_divide_is_widened():
    histogram = Histogram.of(torch.tensor([0.0, 1e-40]))
    assert histogram.counts[0] == 2
    assert histogram.high == 2**-16


def test_values_that_differ_by_their_last_bit_merge():
    x = torch.tensor([1.0, 1.0 + 2**-23])
    merged = Histogram.of(x).merged(Histogram.of(torch.tensor([0.5, 0.75])))
    assert merged.counts.sum() == pytest.approx(4)


def test_the_widest_range_of_float32_is_counted():
    assert Histogram.of(torch.tensor([-3e38, 0.0, 3e38])).counts[[0, -1]].tolist() == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="a histogram needs finite values"):
        Histogram.of(torch.tensor([0.0, value]))
