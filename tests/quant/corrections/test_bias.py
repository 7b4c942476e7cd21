import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.quant.corrections.bias import absorbed_biases, corrected_bias


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs, outputs, kernel=3, **options):
    torch.manual_seed(inputs * outputs)
    return nn.Conv2d(inputs, outputs, kernel, **options).double().requires_grad_(False)


def round_to(x, step, low, high):
    return (x / step).round().clamp(low, high) * step


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
