import pytest
import torch
from torch import nn

from zsqbench.quant.corrections.equalization import (
    balancing_factors,
    dead_channels,
    equalization_factors,
    equalize,
    per_input,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs, outputs, kernel=3, **options):
    torch.manual_seed(inputs * outputs)
    return nn.Conv2d(inputs, outputs, kernel, **options).double().requires_grad_(False)


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


@pytest.mark.parametrize(("shape", "groups"), [((4, 3, 1, 1), 1), ((4, 4, 1, 1), 2), ((4, 3), 1)])
def test_a_layer_that_does_not_read_the_channels_is_refused(shape, groups):
    with pytest.raises(ValueError, match=r"a weight .* does not read 4 channels"):
        per_input(torch.ones(4), torch.ones(shape), groups)
