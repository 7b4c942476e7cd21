from collections import Counter

import pytest
import torch
import torchvision
from networks import called_twice, detector, from_forward
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.bn_folding import fold_bn
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.outputs import output_layers
from zsqbench.quant.graph.tensor_roles import (
    activation_roles,
    check_supported,
    first_calls,
    positions,
    roles,
    weight_roles,
)
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.student import prepare
from zsqbench.scheme import ACTIVATION_ROLES, PLACEMENTS, Placement, parse_scheme
from zsqbench.zoo.resnet import CifarResNet


def named_roles(module, size=(3, 8, 8), *, fold=True, preactivations=False):
    captured = capture(module, size)
    if fold:
        fold_bn(captured)
    return {tensor_name(node): role for node, role in roles(captured, preactivations=preactivations).items()}


def named_positions(module, size=(3, 8, 8)):
    return {tensor_name(node): at for node, at in positions(capture(module, size)).items()}


def test_every_role_is_a_field_of_a_placement_and_each_tensor_has_the_one_that_fits():
    def forward(net, x):
        stem = net.norm(net.stem(x)).relu()
        branch = net.expand(stem)  # read by an addition only
        y = stem + net.drop(branch)  # no activation function follows
        y = net.bottleneck(y)  # read by a layer
        gate = torch.sigmoid(net.gate(y.mean((2, 3), keepdim=True)))
        y = net.last(y * gate)
        y = net.swish(functional.max_pool2d(y, 2))
        y = torch.cat([y, 2 * y], 1)
        return net.head(functional.avg_pool2d(y, y.size()[3]).view(y.size(0), -1))

    one = {name: nn.Conv2d(3, 3, 1) for name in ("stem", "expand", "bottleneck", "gate", "last")}
    more = {"norm": nn.BatchNorm2d(3), "drop": nn.Dropout(), "swish": nn.SiLU(), "head": nn.Linear(6, 4)}
    network = from_forward(forward, **one, **more)
    found = named_roles(network)
    assert found == {
        "input": "input",
        "relu": "relu",
        "expand": "addend",
        "add": "sum",
        "bottleneck": "linear",
        "mean": "pooled",
        "sigmoid": "gate",
        "mul": "product",
        "swish": "activation",
        "mul_1": "other",
        "cat": "concat",
        "avg_pool2d": "pooled",
        "head": "logits",
    }
    read = {"gate": "preactivation", "last": "preactivation"}  # by a sigmoid and by SiLU, and not by ReLU
    assert named_roles(network, preactivations=True) == found | read
    assert {*found.values(), *read.values(), "embedding"} == set(ACTIVATION_ROLES) <= set(Placement.model_fields)


@pytest.mark.parametrize(
    ("function", "role"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU6(inplace=True), "relu"),
        (functional.relu, "relu"),
        (functional.relu6, "relu"),
        (torch.relu, "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.relu_(), "relu"),
        (nn.Hardswish(), "activation"),
        (functional.silu, "activation"),
        (torch.sigmoid, "activation"),
        (lambda x: x.clamp(0, 6), "relu"),
        (lambda x: x.clamp(0, 5), "activation"),
        (nn.PReLU(), "activation"),
    ],
)
def test_an_activation_function_has_its_role_in_every_form(function, role):
    modules = {"function": function} if isinstance(function, nn.Module) else {}
    network = from_forward(
        lambda net, x: net.head(getattr(net, "function", function)(net.conv(x)).flatten(1)),
        conv=nn.Conv2d(3, 3, 1),
        head=nn.Linear(192, 2),
        **modules,
    )
    assert list(named_roles(network).values()) == ["input", role, "logits"]


def test_a_gate_is_read_by_multiplications_of_tensors_only():
    def forward(net, x):
        y = net.conv(x)
        gate = torch.sigmoid(y).expand_as(x)  # read through a move
        scaled = torch.tanh(y) * 2
        both = torch.sigmoid(x)
        relu = torch.relu(x)
        return net.head((x * gate + scaled + x * both + both + x * relu).flatten(1))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2)))
    assert [found[name] for name in ("sigmoid", "tanh", "sigmoid_1", "relu")] == [
        "gate", "activation", "activation", "relu"
    ]  # fmt: skip
    assert [found[name] for name in ("mul", "mul_1", "mul_2", "mul_3")] == ["other", "product", "product", "product"]


def test_products_and_concatenations_in_other_words():
    def forward(net, x):
        y = net.conv(x)
        y = torch.stack([torch.multiply(x, y), x @ y, y * y, y * net.scale], 1)
        return net.head(torch.cat([y]).flatten(1))  # one tensor alone is only handed on

    modules = {"conv": nn.Conv2d(3, 3, 1), "head": nn.Linear(768, 2), "scale": nn.Parameter(torch.ones(3, 1, 1))}
    found = named_roles(from_forward(forward, **modules))
    names = {name: role for name, role in found.items() if name not in ("input", "conv", "head")}
    assert names == {
        "multiply": "product", "matmul": "product", "mul": "product", "mul_1": "other", "stack": "concat"
    }  # fmt: skip


def test_channel_shuffle_split_and_nearest_upsampling_only_move_values():
    def forward(net, x):
        left, right = net.conv(x).chunk(2, 1)
        y = torch.cat([left, net.right(right).relu()], 1)
        y = y.view(-1, 2, 2, 8, 8).transpose(1, 2).contiguous().view(-1, 4, 8, 8)
        y = net.up(functional.interpolate(y, scale_factor=2))
        smooth = functional.interpolate(y, scale_factor=0.25, mode="bilinear")
        return net.head(smooth.flatten(1))

    modules = {"conv": nn.Conv2d(3, 4, 1), "right": nn.Conv2d(2, 2, 1), "up": nn.Upsample(scale_factor=2)}
    found = named_roles(from_forward(forward, **modules, head=nn.Linear(256, 2)))
    assert found == {
        "input": "input", "conv": "linear", "relu": "relu", "cat": "concat", "interpolate_1": "other", "head": "logits"
    }  # fmt: skip


def test_padding_slicing_and_concatenation():
    def forward(net, x):
        padded = functional.pad(net.conv(x), (0, 1, 0, 1))  # zeros lie on the grid
        half = padded[:, :2]
        shifted = functional.pad(half, (0, 1), value=3.0)  # other values may not
        return net.head(torch.cat([half, shifted[..., :-1]], 1).relu().mean((2, 3)))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 4, 1), head=nn.Linear(4, 2)))
    assert found == {
        "input": "input",
        "conv": "linear",
        "pad_1": "other",
        "cat": "concat",
        "relu": "relu",
        "mean": "pooled",
        "head": "logits",
    }


def test_a_linear_bottleneck_that_feeds_a_layer_and_an_addition_is_linear():
    def forward(net, x):
        x = net.first(x)
        return net.head((x + net.second(x)).mean((2, 3)))

    layers = {"first": nn.Conv2d(3, 3, 1), "second": nn.Conv2d(3, 3, 1), "head": nn.Linear(3, 2)}
    found = named_roles(from_forward(forward, **layers))
    assert found == {
        "input": "input",
        "first": "linear",
        "second": "addend",
        "add": "sum",
        "mean": "pooled",
        "head": "logits",
    }


def test_in_place_operators_have_the_roles_of_the_others():
    def forward(net, x):
        y = net.conv(x)
        y += x
        y.relu_()
        y.add_(x)
        return net.head(y.flatten(1))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2)))
    assert found == {"input": "input", "conv": "addend", "add_1": "sum", "head": "logits"} | {
        name: role for name, role in found.items() if name in ("add", "relu")
    }


def test_an_unfolded_norm_belongs_to_the_layer_before_it():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    expected = {"input": "input", "2": "relu", "3": "linear", "5": "logits"}
    assert named_roles(network, fold=False) == named_roles(network) == expected


def test_a_norm_that_cannot_be_folded_is_one_with_its_activation_function_or_else_a_tensor():
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    )
    expected = {"input": "input", "1": "relu", "3": "relu", "4": "other", "5": "logits"}
    assert named_roles(network) == named_roles(network, fold=False) == expected


def test_all_outputs_of_a_network_are_logits():
    def forward(net, x):
        y = net.stem(x).relu()
        return {"boxes": net.boxes(y).flatten(1), "features": y}

    found = named_roles(from_forward(forward, stem=nn.Conv2d(3, 3, 1), boxes=nn.Conv2d(3, 4, 1)))
    assert found == {"input": "input", "relu": "logits", "boxes": "logits"}


def test_roles_of_a_cifar_resnet_20():
    counts = Counter(named_roles(CifarResNet(20), (3, 32, 32)).values())
    assert counts == {"relu": 19, "addend": 9, "pooled": 1, "logits": 1, "input": 1}


def test_stem_and_features_are_seen_through_what_follows_a_layer_and_through_pooling():
    class Pooled(nn.Sequential):
        """Layers with an ending that computes nothing."""

    tail = [nn.AdaptiveAvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2)]
    conv = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 1), nn.ReLU()]
    network = Pooled(*conv, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *tail)
    assert named_positions(network) == {"2": ("stem",), "6": ("features",)}
    network.eval()
    captured = capture(network, (3, 8, 8))
    fold_bn(captured)
    assert {tensor_name(node): at for node, at in positions(captured).items()} == named_positions(network)


def test_features_may_be_a_sum_with_or_without_its_activation_function():
    def forward(net, x):
        x = net.stem(x).relu()
        return net.head(net.end(net.conv(x) + x).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 3, 1), "conv": nn.Conv2d(3, 3, 1), "head": nn.Linear(3, 2)}
    assert named_positions(from_forward(forward, **layers, end=nn.ReLU())) == {
        "relu": ("stem",), "end": ("feature_sum",)
    }  # fmt: skip
    assert named_positions(from_forward(forward, **layers, end=nn.Identity())) == {
        "relu": ("stem",), "add": ("feature_sum",)
    }  # fmt: skip


def test_features_that_are_concatenated_or_multiplied_are_at_no_position():
    def forward(net, x):
        y = net.stem(x)
        return net.head(torch.cat([y, y * net.gate(y).sigmoid()], 1).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 3, 1), "gate": nn.Conv2d(3, 3, 1), "head": nn.Linear(6, 2)}
    assert named_positions(from_forward(forward, **layers)) == {"stem": ("stem",)}


def test_what_the_network_returns_has_no_position():
    assert named_positions(nn.Sequential(nn.Conv2d(3, 4, 1))) == {}
    assert named_positions(nn.Sequential(nn.ReLU())) == {}


def test_one_tensor_may_be_stem_and_features_and_the_placement_says_what_counts():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    assert named_positions(network) == {"1": ("stem", "features")}

    def counts(**widths):
        captured = capture(network, (3, 8, 8))
        return [role for node, role in activation_roles(captured, Placement(**widths)).items()][1]

    assert [counts(), counts(stem=8), counts(features="float"), counts(stem=8, features=6)] == [
        "relu", "stem", "features", "stem"
    ]  # fmt: skip


def test_the_academic_placements_differ_in_the_features_of_a_resnet_only():
    def at_eight_bits(network, name):
        found = activation_roles(capture(network.eval(), (3, 64, 64)), PLACEMENTS[name])
        return {tensor_name(node): role for node, role in found.items() if role in ("stem", "features", "feature_sum")}

    resnet, mobilenet = torchvision.models.resnet18(), torchvision.models.mobilenet_v2()
    assert at_eight_bits(resnet, "academic") == {"relu": "stem"}
    assert at_eight_bits(resnet, "academic_intended") == {"relu": "stem", "layer4.1.relu_1": "feature_sum"}
    assert at_eight_bits(mobilenet, "academic") == {"features.0.2": "stem", "features.18.2": "features"}
    assert at_eight_bits(mobilenet, "academic_intended") == at_eight_bits(mobilenet, "academic")
    assert at_eight_bits(resnet, "hw") == {}


def test_weights_are_the_first_the_last_and_the_others():
    layers = [nn.Conv2d(3, 3, 1) for _ in range(4)]
    network = nn.Sequential(*layers[:3], layers[0], layers[3], layers[2])
    roles_by_path = weight_roles(capture(network, (3, 8, 8)))
    assert roles_by_path == {"0": "first_weight", "1": "weight", "2": "last_weight", "4": "weight"}


def test_the_last_layers_of_a_detector_are_those_of_its_heads():
    def forward(net, x):
        near = net.stem(x).relu()
        far = net.deep(near).relu()
        scores = [net.score(level).sigmoid().flatten(2) for level in (near, far)]
        boxes = [net.box(level).flatten(2) for level in (near, far)]
        return torch.cat(scores, 2), torch.cat(boxes, 2)

    names = {"stem": 3, "deep": 3, "score": 2, "box": 4}
    network = from_forward(forward, **{name: nn.Conv2d(3, width, 1) for name, width in names.items()})
    assert weight_roles(capture(network, (3, 8, 8))) == {
        "stem": "first_weight", "deep": "weight", "score": "last_weight", "box": "last_weight"
    }  # fmt: skip
    assert named_positions(network) == {"relu": ("stem", "features"), "relu_1": ("features",)}


def test_a_layer_used_twice_has_one_weight_and_two_tensors():
    conv = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))
    assert named_roles(network) == {"input": "input", "0": "linear", "3": "relu", "5": "logits"}
    network = nn.Sequential(conv, conv, conv)
    assert named_roles(network) == {"input": "input", "0": "linear", "0_1": "linear", "0_2": "logits"}
    assert weight_roles(capture(network, (3, 8, 8))) == {"0": "last_weight"}


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Sequential(nn.Flatten(2), nn.GRU(64, 4)), "0.1' .gru"),
        (nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(3, 4, 1)), "0.1' .convtranspose1d"),
        (nn.Sequential(nn.Flatten(2), nn.LSTM(64, 4)), "0.1' .lstm"),
    ],
)
def test_a_weight_inside_another_operator_is_an_error(network, named):
    captured = capture(nn.Sequential(network), (3, 8, 8))
    kinds = "nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d and nn.Linear modules"
    expected = f"the weight of '{named}.* cannot be quantized: only those of {kinds} can; write"
    with pytest.raises(ZSQBenchError, match=expected):
        check_supported(captured)


def test_weights_that_no_quantizer_reaches_are_an_error():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, 1, 1, 1))

        def forward(self, x):
            return functional.conv3d(x[:, :, None], self.weight).flatten(1)

    for network in (Functional(), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 4, 1))):
        with pytest.raises(ZSQBenchError, match=r"the weight of '.*' \(conv.*\) cannot be quantized"):
            check_supported(capture(network, (3, 8, 8)))


def test_a_constant_that_is_a_vector_or_is_met_element_by_element_is_no_weight():
    def forward(net, x):
        x = torch.addcmul(net.offset.view(1, 1, 8, 1), net.gain.view(1, 1, 8, 1), net.conv(x))
        x = torch.maximum(x * net.mask, net.floor)
        return functional.bilinear(x.flatten(1), net.gain[None].expand(2, 8), net.kernel) if net.contracts else x

    parts = {"conv": nn.Conv2d(3, 4, 1), **{name: nn.Parameter(torch.randn(8)) for name in ("offset", "gain")}}
    parts |= {name: nn.Parameter(torch.randn(4, 8, 8)) for name in ("mask", "floor")}
    network = from_forward(forward, **parts, kernel=nn.Parameter(torch.randn(5, 256, 8)))
    network.contracts = False
    check_supported(capture(network, (3, 8, 8)))
    network.contracts = True
    with pytest.raises(ZSQBenchError, match=r"the weight of 'bilinear' \(bilinear\) cannot be quantized"):
        check_supported(capture(network, (3, 8, 8)))


def test_only_means_over_height_and_width_pool():
    def forward(net, x):
        y = net.conv(x)
        channels = y.mean(1, keepdim=True)
        scale = y.mean()
        return net.head((y * channels * scale).mean(3).mean(2))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(3, 2)))
    assert [found[name] for name in ("mean", "mean_1", "mean_2", "mean_3")] == ["other", "other", "pooled", "pooled"]


def test_what_reads_only_the_shape_of_a_tensor_does_not_count():
    def forward(net, x):
        y = net.conv(x)
        return net.head((y + x).view(y.size(0), -1))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2)))
    assert found["conv"] == "addend"


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(axis=(2, 3)),
        lambda x: x.mean(3).mean(2),
        lambda x: x.flatten(2).mean(-1),
        lambda x: torch.flatten(x, 2).mean(dim=2, keepdim=True).flatten(1),
        lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
    ],
)
def test_the_form_of_average_pooling_makes_no_difference(pool):
    found = named_roles(
        from_forward(lambda net, x: net.head(pool(net.conv(x))), conv=nn.Conv2d(3, 4, 1), head=nn.Linear(4, 2))
    )
    assert [role for role in found.values() if role not in ("input", "linear", "logits")] in (
        ["pooled"],
        ["pooled"] * 2,
    )


def test_a_mean_over_tokens_or_channels_is_no_pooling():
    tokens = from_forward(
        lambda net, x: net.head(net.mix(x.flatten(2).transpose(1, 2)).mean(1)),
        mix=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    assert "pooled" not in named_roles(tokens).values()
    channels = from_forward(lambda net, x: net.conv(x).mean(1), conv=nn.Conv2d(3, 4, 1))
    assert "pooled" not in named_roles(channels).values()


def test_pythons_sum_adds_like_any_other():
    def forward(net, x):
        x = net.stem(x)
        return net.head(sum([net.a(x), net.b(x)]).mean((2, 3)))

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("stem", "a", "b")}
    found = named_roles(from_forward(forward, **layers, head=nn.Linear(3, 2)))
    assert (found["a"], found["b"]) == ("addend", "addend")


def test_quantization_stops_before_what_decodes_the_outputs():
    found = named_roles(detector())
    assert [name for name, role in found.items() if role == "logits"] == ["score", "score_1", "box", "box_1"]
    assert not {"sigmoid", "cat", "cat_1"} & found.keys()
    assert output_layers(capture(detector(), (3, 8, 8))) == ["score", "box"]


def test_a_sigmoid_inside_of_a_network_is_a_tensor_all_the_same():
    found = named_roles(
        from_forward(lambda net, x: net.last(net.conv(x).sigmoid()), conv=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 2, 1))
    )
    assert found == {"input": "input", "sigmoid": "activation", "last": "logits"}


def test_what_a_layer_gives_in_several_calls_is_one_tensor_unless_it_reads_it():
    def shared_tensors(module):
        captured = capture(module, (3, 8, 8))
        calls = first_calls(captured, roles(captured))
        return {tensor_name(node): tensor_name(first) for node, first in calls.items()}

    assert shared_tensors(detector()) == {"relu_3": "relu_2", "score_1": "score", "box_1": "box"}
    assert shared_tensors(called_twice()) == {}


def test_calls_whose_results_have_different_roles_are_different_tensors():
    def forward(net, x):
        added = net.shared(x)
        return net.last((added + x).relu()), net.last(net.shared(functional.avg_pool2d(x, 2)))

    net = from_forward(forward, shared=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 2, 1))
    for scheme in ("hw/w4a4", "hw_strict/w4a4", "academic/w4a4"):
        student = prepare(net, parse_scheme(scheme), (3, 8, 8))
        assert len(student(torch.zeros(2, 3, 8, 8))) == 2
    found = named_roles(net)
    assert (found["shared"], found["shared_1"]) == ("addend", "linear")
