import pytest
import torch

from zsqbench.quant.corrections.second_moment import second_moment_correction


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
