import pytest
import torchvision
from networks import from_forward
from torch import nn
from transformernets import built

from zsqbench.quant import block_outputs
from zsqbench.quant.graph.maps import cut_behind, last_map
from zsqbench.quant.graph.tracing import capture
from zsqbench.zoo.resnet import CifarResNet


def found(module, side=32):
    captured = capture(module.eval().requires_grad_(False), (3, side, side))
    node = last_map(captured)
    return captured, node, None if node is None else str(node.target)


def convolutional(*classifier):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, *classifier)


@pytest.mark.parametrize(
    ("module", "side", "expected"),
    [
        (CifarResNet(20), 32, "layer3.2.conv2"),
        (torchvision.models.mobilenet_v2(), 64, "features.18.0"),
        (convolutional(nn.Conv2d(5, 7, 1), nn.Flatten()), 8, "2"),  # a classifier whose map is one pixel
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten()), 8, None),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 8, None),
    ],
)
def test_the_last_map_is_the_last_with_more_than_one_position(module, side, expected):
    assert found(module, side)[2] == expected


def test_a_projected_shortcut_is_no_last_map_although_it_is_called_last():
    module = from_forward(
        lambda self, x: self.fc((self.second(self.first(x)) + self.short(x)).mean((2, 3))),
        first=nn.Conv2d(3, 3, 1),
        second=nn.Conv2d(3, 3, 1),
        short=nn.Conv2d(3, 3, 1),
        fc=nn.Linear(3, 2),
    )
    captured, node, name = found(module, 4)
    assert name == "second"
    assert [str(each.target) for each in cut_behind(captured, node)] == ["second", "short"]


def test_of_layers_as_deep_the_last_is_taken():
    module = from_forward(
        lambda self, x: self.left(x).mean((2, 3)) + self.right(x).mean((2, 3)),
        left=nn.Conv2d(3, 2, 1),
        right=nn.Conv2d(3, 2, 1),
    )
    assert found(module, 4)[2] == "right"


@pytest.mark.parametrize(("name", "expected"), [("vit", "conv_proj"), ("swin", "features.0.0")])
def test_a_linear_layer_makes_no_map_though_tokens_may_have_four_dimensions(name, expected):
    net, (_, side, _) = built(name)
    captured, node, found_name = found(net, side)
    assert found_name == expected
    assert block_outputs(captured) == [node]
