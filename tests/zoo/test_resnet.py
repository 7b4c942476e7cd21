import pytest
import torch
from torch import fx

from zsqbench.zoo.resnet import CifarResNet, Subsample


@pytest.mark.parametrize(("depth", "convolutions"), [(20, 19), (32, 31), (44, 43), (56, 55)])
def test_the_depth_counts_convolutions_and_the_classifier(depth, convolutions):
    names = [name for name, weight in CifarResNet(depth).named_parameters() if weight.dim() == 4]
    assert len(names) == convolutions


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4) + 1
    y = Subsample(2, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, [0, 3]].eq(0).all()
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])


def test_it_can_be_traced():
    network = CifarResNet(20, width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(fx.symbolic_trace(network)(x), network(x))


def test_width_channels_and_classes_are_parameters():
    assert CifarResNet(20, width=3, in_channels=1, classes=7)(torch.randn(2, 1, 8, 8)).shape == (2, 7)


def test_the_published_cifar10_weights_have_exactly_these_names_and_shapes(golden):
    published = {name: weight.shape for name, weight in golden("resnet20_weights").items()}
    own = {name: tuple(weight.shape) for name, weight in CifarResNet(20).state_dict().items()}
    assert published == {name: shape for name, shape in own.items() if not name.endswith("num_batches_tracked")}
