import pytest
import torch
import torchvision
from networks import from_forward
from torch import nn

from zsqbench.quant import block_outputs, prepare, with_features
from zsqbench.quant.graph.tracing import capture, tensor_name
from zsqbench.scheme import parse_scheme
from zsqbench.zoo.resnet import CifarResNet


def names(module, side, scheme=None):
    module = module.eval().requires_grad_(False)
    size = (3, side, side)
    captured = capture(module, size) if scheme is None else prepare(module, parse_scheme(scheme), size)
    return [str(node.target) for node in block_outputs(captured)]


def separable(width):
    """What MobileNetV1 is made of."""
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    pointwise = nn.Conv2d(width, width, 1, bias=False)
    return [depthwise, nn.BatchNorm2d(width), nn.ReLU(), pointwise, nn.BatchNorm2d(width), nn.ReLU()]


def test_resnets_align_what_their_branches_give_before_the_addition():
    assert names(CifarResNet(20), 32) == [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in range(3)]
    found = names(torchvision.models.resnet18(), 64)
    assert found == [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in range(2)]


def test_mobilenetv2_aligns_its_projections():
    found = names(torchvision.models.mobilenet_v2(), 64)
    assert len(found) == 17
    assert found[:2] == ["features.1.conv.2", "features.2.conv.3"]


def test_mobilenetv1_aligns_what_follows_depthwise_convolutions():
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    assert names(nn.Sequential(*stem, *separable(4), *separable(4), *head), 8) == ["7", "13"]


def test_a_plain_network_aligns_all_convolutions_but_the_first():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)]
    assert names(nn.Sequential(*layers), 8) == ["2"]


@pytest.mark.parametrize(
    ("scheme", "expected"), [("hast/w4a4", "bn2"), ("hw/w4a4", "conv2"), ("hw_strict/w4a4", "conv2")]
)
def test_quantizers_and_folding_change_nothing(scheme, expected):
    found = names(CifarResNet(20), 16, scheme)
    assert found == [f"layer{stage}.{block}.{expected}" for stage in (1, 2, 3) for block in range(3)]


def test_the_deepest_of_several_summands_is_taken():
    net = from_forward(
        lambda net, x: net.b(net.a(x).relu()) + net.c(x),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
        c=nn.Conv2d(3, 3, 1),
    )
    assert names(nn.Sequential(net, nn.ReLU(), nn.Conv2d(3, 2, 1)), 4) == ["0.b"]


def test_features_come_beside_the_output_and_modules_are_shared():
    module = CifarResNet(20).eval().requires_grad_(False)
    captured = capture(module, (3, 16, 16))
    nodes = block_outputs(captured)
    seen = {}
    module.layer2[0].bn2.register_forward_hook(lambda *args: seen.setdefault("bn2", args[-1]))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    both = with_features(captured, nodes)
    outputs, features = both(images)
    assert torch.equal(outputs, module(images))
    assert torch.equal(features[[tensor_name(node) for node in nodes].index("layer2.0.conv2")], seen["bn2"])
    assert both.get_submodule("layer1.0.conv1") is captured.get_submodule("layer1.0.conv1")
