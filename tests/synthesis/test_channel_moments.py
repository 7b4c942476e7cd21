import pytest
import torch
from torch import nn

from zsqbench.synthesis import channel_moments, image_moments


def values(*shape, dtype=torch.float64, offset=0.0):
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (noise + offset).to(dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_and_their_gradients_are_those_of_torch(layout):
    x = values(5, 4, 3, 2).contiguous(memory_format=layout).requires_grad_()
    variance, mean = torch.var_mean(x, (2, 3), correction=0)
    ours = image_moments(x)
    torch.testing.assert_close(ours, (mean, variance))
    weights = torch.arange(1.0, mean.numel() + 1, dtype=torch.float64).view_as(mean)
    (expected,) = torch.autograd.grad((weights * mean + variance.sqrt() / weights).sum(), x)
    (gradient,) = torch.autograd.grad((weights * ours[0] + ours[1].sqrt() / weights).sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_with_moments_is_the_norm_and_the_moments(affine):
    norm = nn.BatchNorm2d(4, affine=affine).double().eval().requires_grad_(False)
    for number, tensor in enumerate([*norm.parameters(), norm.running_mean, norm.running_var]):
        tensor.copy_(values(4, offset=number + 1).abs())
    x = values(5, 4, 3, 2).requires_grad_()
    expected = norm(x), *image_moments(x)
    found = channel_moments.norm_and_moments(x, norm)
    torch.testing.assert_close(found, expected)
    for parts in ([0], [1], [2], [0, 1, 2]):
        gradients = [
            torch.autograd.grad(sum(each[part].pow(3).sum() for part in parts), x, retain_graph=True)[0]
            for each in (found, expected)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("offset", "accuracy"), [(0.0, 2e-6), (1.0, 2e-6), (9.9, 1e-4), (100.0, 1e-5)])
def test_a_large_mean_costs_little_accuracy(dtype, offset, accuracy):
    x = values(2, 3, 64, 64, dtype=dtype, offset=offset)
    mean, variance = image_moments(x)
    expected, expected_mean = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(variance.double(), expected, rtol=accuracy, atol=0)


def test_maps_of_one_value_have_no_variance():
    assert torch.equal(image_moments(values(3, 2, 1, 1, dtype=torch.float32))[1], torch.zeros(3, 2))


def test_gradients_of_half_precision_are_rounded_once():
    x = values(2, 3, 8, 8, dtype=torch.bfloat16).requires_grad_()
    norm = nn.BatchNorm2d(3).eval().requires_grad_(False)
    result, mean, variance = channel_moments.norm_and_moments(x, norm)
    (gradient,) = torch.autograd.grad(result.float().sum() + mean.sum() + variance.sum(), x)
    y = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(norm(y).sum() + y.mean((2, 3)).sum() + y.var((2, 3), correction=0).sum(), y)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, expected.bfloat16())


def test_calls_of_one_layer_with_maps_of_different_sizes_are_one_sample():
    maps = [values(2, 3, side, side, offset=side) for side in (4, 2, 1)]
    calls = [(*image_moments(each), each[0, 0].numel()) for each in maps]
    mean, variance, count = channel_moments.merge_calls(calls)
    expected, expected_mean = torch.var_mean(torch.cat([each.flatten(2) for each in maps], 2), 2, correction=0)
    torch.testing.assert_close((mean, variance), (expected_mean, expected))
    assert count == 21
