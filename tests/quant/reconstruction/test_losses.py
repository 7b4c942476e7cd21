import pytest
import torch

from zsqbench.quant.reconstruction.losses import reconstruction_loss


def pair(*shape):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng, requires_grad=True), torch.randn(*shape, generator=rng)


@pytest.mark.parametrize("power", [2.0, 2.4])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 7)])
def test_the_loss_sums_channels_and_averages_the_rest(power, shape):
    output, target = pair(*shape)
    loss = reconstruction_loss(output, target, power)
    (gradient,) = torch.autograd.grad(loss, output)
    expected = (output - target).abs().pow(power).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, output)[0])


def test_equal_tensors_have_no_loss_and_no_gradient():
    output, _ = pair(2, 3, 4, 4)
    loss = reconstruction_loss(output, output.detach().clone(), 2.4)
    loss.backward()
    assert loss == 0
    assert output.grad.abs().max() == 0


def test_diagonal_fisher_weighs_squared_errors_with_squared_weights():
    output, target = pair(2, 3, 4, 4)
    weights = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = reconstruction_loss(output, target, fisher="diag", weights=weights)
    torch.testing.assert_close(loss, ((output - target).square() * weights.square()).sum(1).mean())


def test_full_fisher_multiplies_with_the_sum_over_an_image():
    output, target = pair(2, 3, 4, 4)
    weights = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    weighted = (output - target).abs() * weights
    loss = reconstruction_loss(output, target, fisher="full", weights=weights)
    torch.testing.assert_close(loss, (weighted.sum((1, 2, 3), keepdim=True) * weighted).mean() / 100)


def test_fisher_without_weights_is_an_error():
    with pytest.raises(ValueError, match="weights"):
        reconstruction_loss(*pair(2, 3, 4, 4), fisher="diag")


def test_halves_are_compared_in_float32():
    output, target = pair(2, 3, 4, 4)
    loss = reconstruction_loss(output.bfloat16(), target)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("fisher", [None, "diag", "full"])
def test_one_value_for_each_image_is_one_channel(fisher):
    output, target = pair(5)
    weights = torch.rand(5, generator=torch.Generator().manual_seed(1))
    loss = reconstruction_loss(output, target, fisher=fisher, weights=weights)
    expected = reconstruction_loss(output[:, None], target[:, None], fisher=fisher, weights=weights[:, None])
    assert loss == expected > 0
