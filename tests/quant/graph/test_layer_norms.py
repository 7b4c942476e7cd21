import pytest
import torch
from networks import from_forward
from torch import nn
from torchvision.models import swin_transformer, vision_transformer

from zsqbench.quant import activation_quantizers, capture, normed_layers, prepare
from zsqbench.quant.graph.layer_norms import fold_layer_norms
from zsqbench.scheme import Placement, Scheme, parse_scheme

SIZE = (3, 16, 16)


def vit():
    return vision_transformer.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def swin():
    return swin_transformer.SwinTransformer([2, 2], 8, [2, 2], [1, 2], [2, 2], num_classes=5)


def randomized(make):
    torch.manual_seed(0)
    net = make().double().eval().requires_grad_(requires_grad=False)
    for parameter in net.parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, 0.5)
    return net


def found_in(net, size=SIZE):
    return {each.norm: each.layers for each in normed_layers(capture(net, size))}


def test_each_half_of_a_block_reads_a_normalisation():
    found = found_in(vit())
    block = "encoder.layers.encoder_layer_0"
    assert found[f"{block}.ln_1"] == (f"{block}.self_attention.in_proj",)
    assert found[f"{block}.ln_2"] == (f"{block}.mlp.0",)
    assert found["encoder.ln"] == ("heads.head",)  # seen through the choice of the class token
    assert len(found) == 5


def test_windows_and_merging_keep_channels_and_a_normalisation_of_patches_is_read_elsewhere():
    found = found_in(swin())
    assert found["features.1.1.norm1"] == ("features.1.1.attn.linear",)
    assert found["features.2.norm"] == ("features.2.reduction",)
    assert "features.0.2" not in found
    assert "norm" not in found  # pooled: the layer reads another tensor


def reads(forward, size=(3, 8, 8), **more):
    layers = {"norm": nn.LayerNorm(64), "a": nn.Linear(64, 4), "b": nn.Linear(64, 4)} | more
    return found_in(from_forward(lambda net, x: forward(net, net.norm(x.flatten(2))).flatten(1), **layers), size)


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (lambda net, x: net.a(x), ("a",)),
        (lambda net, x: net.a(x) + net.b(x), ("a", "b")),
        (lambda net, x: net.a(x.permute(1, 0, 2).contiguous()), ("a",)),
        (lambda net, x: net.a(x.transpose(0, 1)), ("a",)),
        (lambda net, x: net.a(x.reshape(-1, 64)), ("a",)),
    ],
)
def test_layers_that_read_every_channel_on_the_last_axis(forward, layers):
    assert reads(forward) == {"norm": layers}


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.a(x) + x.mean(),  # read elsewhere
        lambda net, x: net.a(net.a(x).repeat(1, 1, 16)),  # called twice
        lambda net, x: net.square(x.reshape(-1, 8, 8)),  # channels over two axes
        lambda net, x: net.square(x.reshape(x.shape[0], 3, 8, 8)),
        lambda net, x: net.a(x.unflatten(2, (8, 8)).transpose(2, 3).flatten(2)),
        lambda net, x: net.conv(x.unflatten(2, (8, 8))),
    ],
)
def test_other_readers_leave_a_normalisation_alone(forward):
    assert reads(forward, square=nn.Linear(8, 2), conv=nn.Conv2d(3, 1, 1)) == {}


def test_a_normalisation_over_two_axes_or_called_twice_is_left_alone():
    assert found_in(from_forward(lambda net, x: net.a(net.norm(x)), norm=nn.LayerNorm([8, 8]), a=nn.Linear(8, 2)),
                    (3, 8, 8)) == {}  # fmt: skip
    assert found_in(from_forward(lambda net, x: net.a(net.norm(net.norm(x))), norm=nn.LayerNorm(8), a=nn.Linear(8, 2)),
                    (3, 8, 8)) == {}  # fmt: skip


@pytest.mark.parametrize("make", [vit, swin])
def test_folding_changes_nothing_but_where_gains_and_offsets_are(make):
    net = randomized(make)
    captured, x = capture(net, SIZE), torch.randn(4, *SIZE, dtype=torch.float64)
    folded = [each.norm for each in normed_layers(captured)]
    fold_layer_norms(captured)
    torch.testing.assert_close(captured(x), net(x), rtol=1e-10, atol=1e-10)
    for path in folded:
        norm = captured.get_submodule(path)
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    assert len(folded) > 3


def test_a_normalisation_without_offset_and_layers_without_bias_are_folded():
    layers = {"norm": nn.LayerNorm(8, bias=False), "a": nn.Linear(8, 4, bias=False)}
    net = from_forward(lambda net, x: net.a(net.norm(x)).flatten(1), **layers).double().eval()
    nn.init.normal_(net.norm.weight)
    captured, x = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fold_layer_norms(captured)
    torch.testing.assert_close(captured(x), net(x), rtol=1e-12, atol=1e-12)
    assert captured.get_submodule("a").bias is None


def test_a_scheme_says_if_it_is_folded():
    net = randomized(vit)
    for folds in (False, True):
        scheme = Scheme(name="own/w4a4", placement=Placement(fold_layer_norm=folds), weight_bits=4, activation_bits=4)
        norm = prepare(net, scheme, SIZE).get_submodule("encoder.ln")
        assert bool((norm.weight == 1).all()) is folds


def test_quantizers_on_the_way_are_known():
    student = prepare(randomized(vit), parse_scheme("repq/w4a4"), SIZE)
    named = {quantizer: name for name, quantizer in activation_quantizers(student)}
    assert [named[quantizer] for quantizer in normed_layers(student)[0].quantizers] == [
        "encoder.layers.encoder_layer_0.ln_1"
    ]
