import torch
from torch import fx, nn

from zsqbench.zoo.mobilenet import InvertedResidual, MobileNetV2


def test_a_block_adds_its_input_only_where_the_shape_stays():
    assert InvertedResidual(4, 4, stride=1, expansion=2).residual
    assert not InvertedResidual(4, 4, stride=2, expansion=2).residual
    assert not InvertedResidual(4, 6, stride=1, expansion=2).residual


def test_bottlenecks_are_linear():
    block = InvertedResidual(4, 6, stride=1, expansion=2)
    assert not any(isinstance(module, nn.ReLU6) for module in block.project)
    assert isinstance(block.expand[-1], nn.ReLU6)


def test_it_can_be_traced():
    network = MobileNetV2(((4, 2, 1), (6, 1, 2)), stem=4, head=8, classes=7).eval()
    x = torch.randn(2, 1, 8, 8)
    assert network(x).shape == (2, 7)
    assert torch.equal(fx.symbolic_trace(network)(x), network(x))
