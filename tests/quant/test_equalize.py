import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.quant.affine import along, fake_quantize, symmetric_parameters
from zsqbench.quant.equalize import (
    ShiftedGrid,
    absorbed_biases,
    balancing_factors,
    best_shifted_grid,
    corrected_bias,
    dead_channels,
    equalization_factors,
    equalize,
    per_input,
    second_moment_correction,
    shifted_grid,
)
from zsqbench.quant.histogram import Histogram, RunningHistogram
from zsqbench.quant.thresholds import activation_threshold, symmetric_weight_thresholds


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


def test_every_live_channel_fills_the_threshold():
    factors = equalization_factors(torch.tensor([1.0, 4.0, 5.0, 0.0]), 4)
    assert factors.tolist() == [4, 1, 1, 1]
    assert equalization_factors(torch.tensor([0.5]), torch.tensor(8.0)).tolist() == [16]


def next_layers():
    return {
        "plain": conv(8, 6, padding=1),
        "depthwise": conv(8, 8, padding=1, groups=8),
        "depthwise with two outputs a channel": conv(8, 16, padding=1, groups=8),
        "grouped": conv(8, 6, padding=1, groups=2),
        "linear after flattening": nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5).double().requires_grad_(False)),
        "linear after pooling": nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5).double().requires_grad_(False)
        ),
    }


@pytest.mark.parametrize("kind", list(next_layers()))
def test_two_equalized_layers_compute_what_they_did(kind):
    first, rest = conv(3, 8, padding=1), next_layers()[kind]
    second = rest[-1] if isinstance(rest, nn.Sequential) else rest
    x = normal(4, 3, 6, 6)
    between = first(x).relu()
    maxima = between.amax((0, 2, 3))
    factors = equalization_factors(maxima, 4)
    before = rest(between)
    first.weight.data, first.bias.data, second.weight.data = equalize(
        first.weight, first.bias, second.weight, factors, next_groups=getattr(second, "groups", 1)
    )
    between = first(x).relu()

    assert torch.allclose(between.amax((0, 2, 3)), maxima.clamp(min=4))
    assert torch.allclose(rest(between), before, atol=1e-12)


def test_equalization_leaves_its_arguments_and_a_missing_bias_alone():
    weight, next_weight = torch.ones(2, 3), torch.ones(4, 2)
    equalized = equalize(weight, None, next_weight, torch.tensor([2.0, 4.0]))
    assert equalized.bias is None
    assert equalized.weight.tolist() == [[2, 2, 2], [4, 4, 4]]
    assert equalized.next_weight.tolist() == [[0.5, 0.25]] * 4
    assert weight.eq(1).all()
    assert next_weight.eq(1).all()


def read_by_channel(layer, channels):
    """The largest absolute weight that reads each channel, found by feeding one channel after the other."""
    probes = torch.eye(channels, dtype=torch.float64)
    magnitudes = layer.weight.abs()
    if isinstance(layer, nn.Linear):
        each = layer.in_features // channels
        return torch.stack([(magnitudes * probe.repeat_interleave(each)).amax() for probe in probes])
    in_group = channels // layer.groups
    found = torch.zeros(channels, dtype=torch.float64)
    for out in range(len(magnitudes)):
        group = out // (len(magnitudes) // layer.groups)
        for i in range(in_group):
            channel = group * in_group + i
            found[channel] = torch.maximum(found[channel], magnitudes[out, i].max())
    return found


@pytest.mark.parametrize("kind", list(next_layers()))
def test_balanced_layers_have_one_range_in_each_channel(kind):
    first, rest = conv(3, 8, padding=1), next_layers()[kind]
    second = rest[-1] if isinstance(rest, nn.Sequential) else rest
    first.weight.data *= torch.logspace(-3, 3, 8).view(-1, 1, 1, 1)
    x, groups = normal(4, 3, 6, 6), getattr(second, "groups", 1)
    before = rest(first(x).relu())
    factors = balancing_factors(first.weight, second.weight, next_groups=groups)
    first.weight.data, first.bias.data, second.weight.data = equalize(
        first.weight, first.bias, second.weight, factors, next_groups=groups
    )
    made = first.weight.abs().amax((1, 2, 3))
    torch.testing.assert_close(made, read_by_channel(second, 8))
    assert torch.allclose(rest(first(x).relu()), before, atol=1e-12)


def test_channels_that_a_layer_leaves_out_are_not_rescaled():
    weight, next_weight = torch.ones(4, 3), torch.ones(2, 4)
    weight[0], weight[1], next_weight[:, 2] = 0, 1e-12, 0
    assert balancing_factors(weight, next_weight).tolist() == [1] * 4
    assert balancing_factors(torch.zeros(4, 3), next_weight).tolist() == [1] * 4
    assert dead_channels(weight).tolist() == [True, True, False, False]
    assert dead_channels(torch.zeros(2, 3)).all()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_an_absorbed_constant_changes_nothing_but_along_padding(groups):
    first, second = conv(3, 8, kernel=1), conv(8, 16, groups=groups, padding=1)
    first.bias.data += 9.0  # all that the ReLU gets is above what is absorbed
    x, amounts = 0.1 * normal(4, 3, 6, 6), torch.linspace(0, 5, 8, dtype=torch.float64)
    before = second(first(x).relu())
    first.bias.data, second.bias.data = absorbed_biases(
        first.bias, second.weight, second.bias, amounts, next_groups=groups
    )
    after = second(first(x).relu())
    assert torch.allclose(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], atol=1e-12)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize(("shape", "groups"), [((4, 3, 1, 1), 1), ((4, 4, 1, 1), 2), ((4, 3), 1)])
def test_a_layer_that_does_not_read_the_channels_is_refused(shape, groups):
    with pytest.raises(ValueError, match=r"a weight .* does not read 4 channels"):
        per_input(torch.ones(4), torch.ones(shape), groups)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_corrected_bias_keeps_the_mean_of_a_convolution(groups):
    layer, x = conv(8, 16, groups=groups), normal(4, 8, 1, 1).expand(4, 8, 7, 7)  # without borders E[x] is exact
    quantized = round_to(layer.weight, 0.1, -1, 1)
    bias = corrected_bias(layer.bias, layer.weight, quantized, x.mean((0, 2, 3)), groups=groups)
    y = functional.conv2d(x, quantized, bias, groups=groups)
    assert torch.allclose(y.mean((0, 2, 3)), layer(x).mean((0, 2, 3)), atol=1e-12)


def test_the_corrected_bias_keeps_the_mean_of_a_linear_layer():
    weight, x = normal(5, 9), normal(30, 9, seed=1) + 1
    quantized = round_to(weight, 0.5, -2, 2)
    bias = corrected_bias(None, weight, quantized, x.mean(0))
    assert torch.allclose((x @ quantized.T + bias).mean(0), (x @ weight.T).mean(0), atol=1e-12)


def test_the_bias_of_a_first_layer_is_corrected_as_in_mct(golden):
    mct = golden("mct_ptq_resnet20_a")
    weight, quantized, bias, expected = (
        torch.from_numpy(mct[name])
        for name in (
            "default_floatweight_00",
            "default_qweight_00",
            "default_nobc_bias_00",
            "default_bias_00",
        )
    )
    images = torch.from_numpy(mct["calib"]).flatten(0, 1)
    corrected = corrected_bias(bias, weight, quantized, images.mean((0, 2, 3)))
    torch.testing.assert_close(corrected, expected, rtol=0, atol=1e-6)
    assert (corrected - bias).abs().max() > 1e-4


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


def test_second_moments_become_those_of_the_batch_norm():
    y, beta, gamma = normal(500, 3) * torch.tensor([1, 2, 3]) + 4, normal(3, seed=1), normal(3, seed=2)
    scale, shift = second_moment_correction(y.mean(0), y.var(0, unbiased=False), beta, gamma)
    corrected = y * scale + shift
    assert torch.allclose(corrected.mean(0), beta)
    assert torch.allclose(corrected.std(0, unbiased=False), gamma.abs())


def test_a_channel_of_little_variance_gets_its_deviation_too():
    scale, _ = second_moment_correction(*map(torch.tensor, ([0.0], [1e-6], [0.0], [1.0])))
    assert scale.item() == pytest.approx(1000)


def test_a_channel_without_variance_gets_its_mean_only():
    mean, variance = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 4.0, 1e-12])
    beta, gamma = torch.tensor([3.0, 3.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    scale, shift = second_moment_correction(mean, variance, beta, gamma)
    assert scale.tolist() == [1, 1, 1]
    assert shift.tolist() == [2, 2, 2]
