import numpy as np
import pytest
import torch
import torchvision
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import alignment_loss, attention, block_outputs, from_features, prepare, with_features
from zsqbench.quant.graph.maps import cut_behind, last_map
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.tracing import capture
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


LAYERS = range(3)


def vectors(golden):
    stored = golden("hast_fa_kd_a")
    return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_released_attention_and_alignment_come_out_with_gradients(golden):
    stored = vectors(golden)
    ours = [stored[f"feat_student_{layer}"].requires_grad_() for layer in LAYERS]
    theirs = [stored[f"feat_teacher_{layer}"] for layer in LAYERS]
    loss = stored["lam"] * alignment_loss(ours, theirs)
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss_FA"][0], rtol=1e-5, atol=0)
    for layer in LAYERS:
        torch.testing.assert_close(
            attention(ours[layer]).detach(), stored[f"att_student_{layer}"], rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(attention(theirs[layer]), stored[f"att_teacher_{layer}"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours[layer].grad, stored[f"grad_feat_student_{layer}"], rtol=1e-4, atol=1e-6)


def test_attention_does_not_see_the_scale_of_features():
    features = random(2, 3, 4, 4)
    torch.testing.assert_close(attention(7 * features), attention(features))


def test_the_papers_alignment_by_hand():
    ours, theirs = [random(2, 3, 4, 4), random(2, 5, 2, 2)], [random(2, 3, 4, 4, seed=1), random(2, 5, 2, 2, seed=1)]
    squares = [
        (a.square().sum((2, 3)) - b.square().sum((2, 3))).square().sum() for a, b in zip(ours, theirs, strict=True)
    ]
    torch.testing.assert_close(alignment_loss(ours, theirs, "paper_attention"), sum(squares) / (2 * 2))


def test_direct_alignment_compares_the_maps():
    ours, theirs = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(alignment_loss([ours], [theirs], "direct"), functional.mse_loss(ours, theirs))


@pytest.mark.parametrize("form", ["attention", "paper_attention", "direct"])
def test_equal_features_are_aligned(form):
    features = [random(2, 3, 4, 4)]
    assert alignment_loss(features, features, form) == 0


def test_the_network_behind_its_features_computes_its_output_from_them():
    scale = nn.Parameter(torch.full((2,), 3.0))
    module = from_forward(
        lambda self, x: self.scale * self.fc((self.conv(x).relu() + x).mean((2, 3))),
        conv=nn.Conv2d(3, 3, 1),
        fc=nn.Linear(3, 2),
        scale=scale,
    )
    captured = capture(module, (3, 4, 4))
    node = last_map(captured)
    network = with_features(captured, [node, *cut_behind(captured, node)])
    logits, values = network(torch.randn(2, 3, 4, 4))
    behind = from_features(network, 1)
    assert torch.equal(behind(*values[1:]), logits)
    assert behind.fc is network.fc
    with pytest.raises(ValueError, match="the output is computed from 'images', too, and not from these features"):
        from_features(with_features(captured, [node]))
