import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import IMAGENET, load_named

STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""Expansion, channels, blocks and stride of the first, as BRECQ's models/mobilenetv2.py lists them."""


def mobilenetv2(state, x):
    """BRECQ's MobileNetV2, computed from the names in its checkpoint."""

    def layer(x, at, norm, stride=1, groups=1):
        weight = state[f"{at}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        parts = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts, eps=1e-5)

    def relu6(*arguments):
        return layer(*arguments).clamp(0, 6)

    x, at = relu6(x, "features.0.0", "features.0.1", 2), 0
    for expansion, channels, count, first in STAGES:
        for stride in (first, *[1] * (count - 1)):
            at, before, place = at + 1, x, 0
            block = f"features.{at}.conv"
            if expansion > 1:
                x, place = relu6(x, f"{block}.0", f"{block}.1"), 3
            x = relu6(x, f"{block}.{place}", f"{block}.{place + 1}", stride, x.shape[1])
            x = layer(x, f"{block}.{place + 3}", f"{block}.{place + 4}")
            assert x.shape[1] == channels
            x = x + before if stride == 1 and before.shape == x.shape else x
    x = relu6(x, "features.18.0", "features.18.1")
    return functional.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


def published(tmp_path, name, nest=None):
    """A checkpoint in the layout of the published one, with believable statistics, and its tensors."""
    torch.manual_seed(0)
    module = load_named(f"brecq/{name}", "none").module.train()
    for norm in (module for module in module.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # so that one batch decides
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    module(torch.randn(2, 3, 64, 64))
    state = module.state_dict()
    torch.save({nest: state, "epoch": 5} if nest else state, path := tmp_path / f"{name}.pth.tar")
    return path, state


def test_mobilenetv2_computes_what_brecqs_does_from_a_checkpoint_like_the_published_one(tmp_path):
    path, state = published(tmp_path, "mobilenetv2", nest="model")
    network = load_named("brecq/mobilenetv2", path).module
    images = torch.randn(2, 3, 64, 64)
    expected = mobilenetv2(state, images)
    assert expected.std(dim=0).mean() > 0.01  # images make a difference, so that equal outputs say something
    torch.testing.assert_close(network(images), expected)


def test_mobilenetv2_holds_what_brecqs_holds_and_does_not_drop_out():
    network = load_named("brecq/mobilenetv2", "none").module
    used = set()

    class Noting(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    mobilenetv2(Noting(network.state_dict()), torch.zeros(1, 3, 32, 32))
    assert {name for name in network.state_dict() if not name.endswith("num_batches_tracked")} == used
    assert network.classifier[0].p == 0


@parametrize_briefly("name,tensors,strided", [("resnet18", 122, "conv1"), ("resnet50", 320, "conv2")], 1)
def test_a_resnet_strides_in_its_3x3_convolution_and_has_torchvisions_names(tmp_path, name, tensors, strided):
    path, state = published(tmp_path, name)
    network = load_named(f"brecq/{name}", path).module
    assert len(state) == tensors
    assert torch.equal(network.bn1.running_var, state["bn1.running_var"])
    for stage in (network.layer2, network.layer3, network.layer4):
        layer = getattr(stage[0], strided)
        assert (layer.kernel_size, layer.stride, stage[0].downsample[0].stride) == ((3, 3), (2, 2), (2, 2))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "resnet18_imagenet.pth.tar"),
        ("resnet50", "resnet50_imagenet.pth.tar"),
        ("mobilenetv2", "mobilenetv2.pth.tar"),
    ],
)
def test_without_weights_the_published_file_is_named(name, file):
    with pytest.raises(ZSQBenchError, match=f"'brecq/{name}' .* give 'weights': {file} of https://.*yhhhli/BRECQ"):
        load_named(f"brecq/{name}")


def test_images_are_fed_as_brecq_and_dgh_feed_them():
    network = load_named("brecq/resnet18", "none", classes=7)
    assert network.feeding == IMAGENET
    assert (IMAGENET.resize, IMAGENET.crop, IMAGENET.interpolation) == (256, 224, "bilinear")
    assert network.module.fc.out_features == 7
