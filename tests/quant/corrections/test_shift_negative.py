import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.quant.corrections.shift_negative import ShiftedGrid, best_shifted_grid, shifted_grid
from zsqbench.quant.grids.affine import along, fake_quantize, symmetric_parameters
from zsqbench.quant.ranges.histogram import Histogram, RunningHistogram
from zsqbench.quant.ranges.thresholds import activation_threshold, symmetric_weight_thresholds


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs, outputs, kernel=3, **options):
    torch.manual_seed(inputs * outputs)
    return nn.Conv2d(inputs, outputs, kernel, **options).double().requires_grad_(False)


def in_8_bits(weight):
    parameters = symmetric_parameters(symmetric_weight_thresholds(weight, 8, 0), 8, True)
    return fake_quantize(weight, *(along(value, 0, weight.dim()) for value in parameters), 8)


def round_to(x, step, low, high):
    return (x / step).round().clamp(low, high) * step


@pytest.mark.parametrize(
    ("minimum", "ratio", "expected"),
    [
        (-0.375, 0.25, ShiftedGrid(0.125, 3)),
        (-0.376, 0.25, ShiftedGrid(0.125, 4)),
        (-0.01, 0.25, ShiftedGrid(0.125, 1)),
        (-8.0, 0.25, ShiftedGrid(0.125, 64)),
        (-8.1, 0.25, None),
        (-31.95, 1, None),  # no code is left for zero and above
        (0.0, 0.25, None),
        (1.0, 0.25, None),
    ],
)
def test_the_shift_is_the_smallest_point_that_covers_the_minimum(minimum, ratio, expected):
    assert shifted_grid(minimum, 32.0, 8, ratio) == expected


def test_a_shift_is_a_zero_point_and_nothing_else():
    # tie-free: round(x / s) + z and round((x + z s) / s) differ where x / s is half an odd integer and z is odd
    x = functional.hardswish(2 * normal(2, 6, 9, 9))
    layer = conv(6, 5, padding=1, stride=2)
    grid = shifted_grid(x.min().item(), 8.0, 4, 0.25)
    assert grid is not None
    assert grid.zero_point == 1
    scale, zero_point = torch.tensor(grid.scale).double(), torch.tensor(float(grid.zero_point)).double()
    shifted_bias = layer.bias - grid.shift * layer.weight.sum((1, 2, 3))

    def shifted(y):
        padded = functional.pad(y, (1, 1, 1, 1), value=grid.shift)
        return functional.conv2d(padded, layer.weight, shifted_bias, stride=2)

    in_mct = shifted(round_to(x + grid.shift, grid.scale, 0, 15))
    affine = layer(fake_quantize(x, scale, zero_point, 4))
    assert torch.allclose(in_mct, affine, atol=1e-12)
    assert torch.allclose(shifted(x + grid.shift), layer(x), atol=1e-12)


def test_the_best_shift_errs_least_on_the_histogram():
    histogram = Histogram.of(functional.hardswish(normal(20_000)))
    threshold = activation_threshold(histogram, 4).threshold.item()
    grid = best_shifted_grid(histogram, threshold, 4, 0.25)
    assert grid is not None
    edges, counts = histogram.left_edges, histogram.counts

    def error(scale, zero_point):
        parameters = torch.tensor(scale).double(), torch.tensor(float(zero_point)).double()
        return ((fake_quantize(edges, *parameters, 4) - edges).square() @ counts).item()

    candidates = [(t / 16, z) for t in (threshold, 2 * threshold) for z in range(16)]
    assert tuple(grid) == min(candidates, key=lambda candidate: error(*candidate))
    assert error(*grid) <= error(*shifted_grid(histogram.low, threshold, 4, 0.25))
    assert error(*grid) < error(threshold / 8, 8)  # the signed grid


def test_the_best_shift_looks_at_all_shifts_of_many_bits():
    histogram = Histogram.of(torch.tensor([-0.25, 0.75]))
    assert best_shifted_grid(histogram, 1.0, 10, 0.25) == ShiftedGrid(2.0**-10, 256)


def test_there_is_no_best_shift_where_none_pays():
    assert best_shifted_grid(Histogram.of(torch.tensor([-1.0, 1.0])), 1.0, 8, 0.25) is None
    assert best_shifted_grid(Histogram.of(torch.tensor([0.0, 1.0])), 1.0, 8, 0.25) is None


@pytest.fixture
def snc(golden):
    """The network of MCT's shift negative correction, and the histogram of the activation that it shifts."""
    vectors = golden("mct_snc_a")
    mct = {name: torch.from_numpy(vectors[name]) for name in vectors if vectors[name].dtype.kind == "f"}
    layers = (nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
    net = nn.Sequential(*layers, nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()).eval().requires_grad_(False)
    net.load_state_dict({name[4:]: value for name, value in mct.items() if name.startswith("net.")}, strict=False)
    torch.testing.assert_close(net(mct["x"]), mct["out_fp"], rtol=1e-5, atol=1e-4)
    running = [RunningHistogram() for _ in range(3)]
    for batch in mct["calib"]:
        between = net[:3](batch)
        for histogram, x in zip(running, (batch, between, net[3:](between)), strict=True):
            histogram.update(x)
    return mct, [histogram.histogram for histogram in running]


def test_a_hardswish_gets_the_thresholds_and_the_shift_of_mct(snc):
    mct, histograms = snc
    assert [histograms[1].low, histograms[1].high] == mct["act_min_max"].tolist()
    found = [activation_threshold(histogram, 8) for histogram in histograms]
    assert [threshold for threshold, _ in found] == mct["off_act_threshold"].tolist()
    assert [signed for _, signed in found] == [True, True, False]
    for name, ratio in (("on", mct["shift_negative_ratio_on"].item()), ("default_ratio", 0.05)):
        grid = shifted_grid(histograms[1].low, found[1].threshold.item(), 8, ratio)
        assert grid is not None
        assert [grid.shift] == mct[f"{name}_shift"].tolist() == mct[f"{name}_pad_value"].tolist()
        kernel = mct[f"{name}_floatweight_01"].sum((1, 2, 3))
        torch.testing.assert_close(mct["off_bias_01"] - grid.shift * kernel, mct[f"{name}_bias_01"])


def test_the_shifted_network_computes_what_mct_computes(snc):
    mct, histograms = snc
    weights = [in_8_bits(mct[f"on_floatweight_{layer}"]) for layer in ("00", "01")]
    grid = shifted_grid(histograms[1].low, 32.0, 8, 0.25)
    x = round_to(mct["x"], 4 / 128, -128, 127)
    x = functional.hardswish(functional.conv2d(x, weights[0], mct["on_bias_00"], padding=1))
    x = round_to(x, 2.0**-10, -(2**15), 2**15 - 1)  # 16 bits, signed, up to 32
    x = round_to(x + grid.shift, grid.scale, 0, 255)
    x = functional.pad(x, (1, 1, 1, 1), value=grid.shift)
    y = functional.conv2d(x, weights[1], mct["on_bias_01"]).relu()
    torch.testing.assert_close(round_to(y, 64 / 256, 0, 255), mct["on_out"], rtol=0, atol=1e-3)
