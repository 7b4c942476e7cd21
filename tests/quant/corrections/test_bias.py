import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.quant.corrections.bias import absorbed_biases, corrected_bias, kernel_share
from zsqbench.quant.grids.transposed import TransposedConv2d


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


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, (1, 2)), (1, 3)])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_corrected_bias_keeps_the_mean_of_a_transposed_convolution(groups, kernel, stride):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 16, kernel, stride, groups=groups, output_padding=max(0, 3 * (kernel == 1) - 1))
    layer = TransposedConv2d.of(layer.double().requires_grad_(False))
    x = normal(4, 8, 1, 1).expand(4, 8, 6, 6)
    quantized = round_to(layer.weight, 0.1, -1, 1)
    share = kernel_share(layer)
    bias = corrected_bias(layer.bias, layer.weight, quantized, x.mean((0, 2, 3)), groups=groups, kernel_share=share)
    expected = layer(x)
    layer.weight.data, layer.bias.data = quantized, bias
    # whole periods of places: along a stride of one those that the whole kernel reaches
    inner = slice(3, 6) if kernel == 4 else slice(None)
    wide = slice(2, 12) if kernel == 4 else slice(None)
    means = [values[..., inner, wide].mean((0, 2, 3)) for values in (layer(x), expected)]
    assert torch.allclose(*means, atol=1e-12)


def test_a_place_reads_the_whole_kernel_but_of_a_transposed_convolution_with_a_stride():
    assert kernel_share(nn.Conv2d(3, 3, 3, stride=2)) == 1
    assert kernel_share(nn.Linear(3, 3)) == 1
    assert kernel_share(nn.ConvTranspose2d(3, 3, 3)) == 1
    assert kernel_share(nn.ConvTranspose2d(3, 3, 3, stride=(2, 3))) == 1 / 6


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
