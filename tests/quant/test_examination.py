import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import from_forward
from zsqbench.quant import examination, examine
from zsqbench.quant.grids.transposed import TransposedConv2d

SIZE = (3, 8, 8)


def network(*parts):
    return nn.Sequential(*parts).eval().requires_grad_(False)


def test_layers_norms_and_activation_functions_are_counted_however_they_are_written():
    weight = torch.ones(4, 4, 1, 1)

    def forward(net, x):
        x = functional.relu(net.norm(net.conv(x)))
        return net.up(functional.conv2d(x, weight).clamp(0, 6)).sigmoid()

    found = examine(
        from_forward(
            forward, conv=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4), up=nn.ConvTranspose2d(4, 2, 2)
        ),
        SIZE,
    )
    assert found.blocker is None
    assert (found.layers, found.norms) == ({"Conv2d": 2, "ConvTranspose2d": 1}, {"BatchNorm2d": 1})
    assert (found.bounded, found.unbounded) == ({"relu6": 1, "sigmoid": 1}, {"relu": 1})
    assert list(found.channels.values()) == [4, 4, 2]


@pytest.mark.parametrize(
    ("activation", "is_bounded"),
    [
        (nn.ReLU6(), True),
        (nn.Hardsigmoid(), True),
        (nn.Hardtanh(-2, 2), True),
        (nn.Hardtanh(-2, math.inf), False),
        (nn.ReLU(), False),
        (nn.SiLU(), False),
        (nn.PReLU(), False),
    ],
)
def test_an_activation_function_without_bound_is_told_from_one_with(activation, is_bounded):
    found = examine(network(nn.Conv2d(3, 4, 3), activation), SIZE)
    assert (sum(found.bounded.values()), sum(found.unbounded.values())) == (is_bounded, not is_bounded)


@pytest.mark.parametrize(
    ("kwargs", "is_bounded"), [({"min": -1}, False), ({"max": 1}, False), ({"min": 0, "max": 1}, 1)]
)
def test_a_clamp_is_bounded_if_it_has_both_limits(kwargs, is_bounded):
    found = examine(from_forward(lambda net, x: net.conv(x).clamp(**kwargs), conv=nn.Conv2d(3, 4, 3)), SIZE)
    assert (sum(found.bounded.values()), sum(found.unbounded.values())) == (is_bounded, not is_bounded)


def with_channels(first, second):
    """A convolution whose two channels have these largest weights."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([first, second]).view(2, 1, 1, 1).expand(2, 3, 1, 1).clone()
    return network(conv)


@pytest.mark.parametrize(("small", "uneven"), [(1.0, {}), (0.999, {"0": pytest.approx(100 / 0.999)})])
def test_channels_are_uneven_beyond_a_hundred(small, uneven):
    found = examine(with_channels(100.0, small), SIZE)
    assert (found.uneven, found.dead) == (uneven, {})


@pytest.mark.parametrize(("small", "dead"), [(2.0**-24, {"0": 1}), (2.0**-23, {})])
def test_a_channel_without_weights_is_dead_and_not_uneven(small, dead):
    found = examine(with_channels(1.0, small), SIZE)
    assert (found.dead, found.spread["0"]) == (dead, 1.0 if dead else 2.0**23)


def test_a_layer_of_dead_channels_alone_has_no_spread():
    found = examine(with_channels(0.0, 0.0), SIZE)
    assert (found.dead, found.spread) == ({"0": 2}, {"0": 1.0})


def test_channels_are_compared_after_folding():
    net = network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[1].weight.data = torch.tensor([0.0, 1.0, 1.0, 1e-3])
    found = examine(net, SIZE)
    assert (found.dead, list(found.uneven)) == ({"0": 1}, ["0"])


@pytest.mark.parametrize(("variance", "still"), [(1e-3, {"1": 1}), (1.001e-3, {})])
def test_a_variance_up_to_eps_is_still(variance, still):
    net = network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3))
    net[1].running_var[2] = variance
    assert examine(net, SIZE).still == still


def test_a_norm_without_statistics_is_never_still():
    found = examine(network(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), SIZE)
    assert (found.norms, found.still) == ({"GroupNorm": 1}, {})


def test_the_size_is_that_of_packed_weights_and_of_all_else_in_float32():
    net = network(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 7))
    found = examine(net, SIZE)
    assert (found.weights, found.others) == (135 + 1260, 5 + 7)  # the norm is the bias that it is folded into
    assert [found.size(bits) for bits in (32, 8, 4)] == [5628, 1395 + 48, 698 + 48]


def test_a_weight_that_two_layers_share_is_counted_by_the_values_that_there_are():
    net = network(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    net[1].weight = net[0].weight
    found = examine(net, SIZE)
    assert (found.weights, found.others) == (9, 0)


def test_outputs_have_shape_and_range():
    net = from_forward(lambda net, x: (net.head(x.mean((2, 3))), x.abs()), head=nn.Linear(3, 2))
    net.head.weight.zero_()
    net.head.bias.copy_(torch.tensor([-1.0, 2.0]))
    first, second = examine(net, SIZE).outputs
    assert (first.shape, first.low, first.high) == ((4, 2), -1.0, 2.0)
    assert (second.shape, second.low >= 0) == ((4, *SIZE), True)


@pytest.mark.parametrize(("divisor", "not_finite"), [(0.0, True), (1.0, False)])
def test_outputs_that_are_not_finite_have_no_range(divisor, not_finite):
    found = examine(from_forward(lambda net, x: net.conv(x) / divisor, conv=nn.Conv2d(3, 4, 3)), SIZE)
    assert (found.not_finite, found.outputs[0].low is None) == (not_finite, not_finite)


def test_without_a_graph_modules_are_known():
    def forward(net, x):
        return net.up(net.norm(net.conv(x))) if x.sum() > 1e9 else net.conv(x)

    up = nn.ConvTranspose2d(4, 2, 1)
    up.weight.data[:, 1] = 0
    net = from_forward(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), up=up)
    found = examine(net, SIZE)
    assert "cannot be traced" in str(found.blocker)
    assert (found.layers, found.norms) == ({"Conv2d": 1, "ConvTranspose2d": 1}, {"BatchNorm2d": 1})
    assert (found.dead, found.channels) == ({"up": 1}, {"conv": 4, "up": 2})
    assert (found.weights, found.others) == (116, 4 + 2 + 16)
    assert [output.shape for output in found.outputs] == [(4, 4, 6, 6)]


def test_a_network_that_fails_is_a_finding():
    found = examine(from_forward(lambda net, x: net.linear(x), linear=nn.Linear(3, 2)), SIZE)
    assert "takes" in str(found.blocker) or "mat1" in str(found.blocker)
    assert (found.outputs, found.layers) == ((), {"Linear": 1})


def test_a_class_of_ones_own_is_called_after_the_layer_that_it_is():
    assert examination._kind(TransposedConv2d(3, 4, 2)) == "ConvTranspose2d"
    assert examination._kind(from_forward(lambda _, x: x)) == "Net"
