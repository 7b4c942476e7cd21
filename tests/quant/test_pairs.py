import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.quant import BoundedReLU, free_bounds, layer_pairs, prepare
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)


def pairs(module, scheme="hw_strict/w8a8"):
    student = prepare(module.eval(), parse_scheme(scheme), SIZE)
    return [
        (pair.first, pair.operator, pair.quantizer.name if pair.quantizer else None, pair.second)
        for pair in layer_pairs(student)
    ]


def from_forward(forward, **modules):
    """A module with these submodules and this forward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x):
            return forward(self, x)

    return Net()


def test_layers_with_an_activation_function_a_norm_padding_and_dropout_between_are_pairs():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, groups=4), nn.Dropout(),
        nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert pairs(network) == [
        ("0", "relu", "2", "4"),
        ("4", "identity", "4", "6"),
        ("6", "hardswish", "7", "8"),
    ]


def test_an_activation_that_stays_float_has_no_quantizer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert pairs(network, "hw/w8a32") == [("0", "relu", None, "2")]


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.second(y := net.first(x)) + y,  # read twice
        lambda net, x: net.second(net.second(net.first(x))),  # called twice
        lambda net, x: net.second(torch.sigmoid(functional.relu(net.first(x)))),  # two activation functions
        lambda net, x: net.second(functional.pad(net.first(x), (1, 1), value=1.0)),  # ones are not scaled
        lambda net, x: net.second(functional.channel_shuffle(net.first(x), 2)),  # channels move
        lambda net, x: net.second(torch.cat([net.first(x)[:, :2], net.first(x)[:, 2:]], 1)),
    ],
)
def test_what_shares_or_mixes_channels_is_no_pair(forward):
    assert pairs(from_forward(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 4, 1))) == []


def test_a_norm_that_was_not_folded_parts_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert pairs(network, "hast/w8a8") == []


def test_bounds_are_freed_where_a_pair_shares_them_and_nothing_else_changes():
    def forward(net, x):
        x = functional.relu6(net.first(x))
        x = net.act(net.second(x))
        return net.act(x + net.third(x))

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("first", "second", "third")}
    network = from_forward(forward, **layers, act=nn.ReLU6()).eval()
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    free_bounds(student)
    images = 20 * torch.randn(4, *SIZE)
    torch.testing.assert_close(student(images), network(images))
    bounded = {path: module for path, module in student.named_modules() if isinstance(module, BoundedReLU)}
    assert list(bounded) == ["bounds.relu6"]
    assert [pair.operator for pair in layer_pairs(student)] == ["relu6"]
    bounded["bounds.relu6"].bound.fill_(1.0)
    assert not torch.equal(student(images), network(images))
