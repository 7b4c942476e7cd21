import pytest
import torch
from torch import nn

from zsqbench.quant import (
    activation_quantizers,
    calibrate_weights,
    equalization_factors,
    finalize,
    follow_rescaling,
    free_bounds,
    layer_pairs,
    prepare,
    quantized_layers,
    rescale,
)
from zsqbench.scheme import parse_scheme


def network(activation, groups=1):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3), activation, nn.Conv2d(16, 16, 3, groups=groups), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 4 * 4, 5)).eval().requires_grad_(False)


def rounded(module, bits, factors):
    """A finalized student, whose first pair was rescaled, and a float one, prepared alike."""
    student, reference = (prepare(module, parse_scheme(f"hw/w{bits}a8"), (3, 8, 8)) for _ in range(2))
    free_bounds(student)
    free_bounds(reference)
    (pair, *_) = layer_pairs(student)
    rescale(student, pair, factors)
    if pair.operator == "relu6":
        bound = student.get_submodule(str(pair.activation.target))
        bound.bound = bound.bound * factors.view(-1, 1, 1)
    calibrate_weights(student, "mse")
    for _, quantizer in activation_quantizers(student):
        quantizer.set_range(torch.tensor(-100.0), torch.tensor(100.0))
    finalize(student)
    return student, reference


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (8, 16)])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
def test_rescaled_channels_are_found_and_the_network_computes_what_it_did(bits, groups, activation):
    module = network(activation, groups)
    factors = equalization_factors(torch.linspace(0.2, 1, 16), 1.0)
    student, reference = rounded(module, bits, factors)
    images = 3 * torch.randn(4, 3, 8, 8)

    assert follow_rescaling(reference, student) == ["0 to 2"]

    with torch.no_grad():
        assert torch.allclose(reference(images), module(images), atol=1e-4)
    ours, theirs = dict(quantized_layers(reference))["0"].weight, dict(quantized_layers(student))["0"]
    found = (ours.flatten(1).norm(dim=1) / module[0].weight.flatten(1).norm(dim=1)).numpy()
    assert found == pytest.approx(factors.numpy(), rel=0.02 if bits == 8 else 0.1)
    assert (ours - theirs.quantized_weight()).square().sum() < 0.02 * ours.square().sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 16])
def test_rounded_weights_that_nobody_rescaled_are_left_alone(bits, groups):
    student, reference = rounded(network(nn.ReLU(), groups), bits, torch.ones(16))
    before = reference.state_dict()["0.weight"].clone()
    assert follow_rescaling(reference, student) == []
    assert torch.equal(reference.state_dict()["0.weight"], before)


def test_a_layer_that_was_scaled_alone_is_an_error_and_stays_one():
    student, reference = (prepare(network(nn.ReLU()), parse_scheme("hw/w8a8"), (3, 8, 8)) for _ in range(2))
    dict(quantized_layers(student))["0"].weight.mul_(torch.linspace(1, 2, 16).view(-1, 1, 1, 1))
    calibrate_weights(student, "mse")
    assert follow_rescaling(reference, student) == []


def test_what_is_no_graph_is_left_alone():
    assert follow_rescaling(nn.Identity(), nn.Identity()) == []
