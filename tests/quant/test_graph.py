from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.fold import fold_bn
from zsqbench.quant.graph import capture, check_supported, roles, tensor_name
from zsqbench.scheme import Placement
from zsqbench.zoo.resnet import CifarResNet


def named_roles(module, size=(3, 8, 8), *, fold=True):
    captured = capture(module, size)
    if fold:
        fold_bn(captured)
    return {tensor_name(node): role for node, role in roles(captured).items()}


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


def test_tensors_are_named_by_module_path_and_operator():
    def forward(net, x):
        y = functional.relu(net.conv(x))
        y = net.act(net.conv(y))
        y = net.act(y + x)
        return net.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))

    block = from_forward(forward, conv=nn.Conv2d(3, 3, 1), act=nn.ReLU6(), head=nn.Linear(3, 4))
    captured = capture(nn.Sequential(block), (3, 8, 8))
    names = [tensor_name(node) for node in captured.graph.nodes if node.op != "output"]
    assert names == [
        "input", "0.conv", "0.relu", "0.conv_1", "0.act", "0.add", "0.act_1", "0.adaptive_avg_pool2d", "0.flatten",
        "0.head",
    ]  # fmt: skip


def test_every_role_is_a_field_of_a_placement_and_each_tensor_has_the_one_that_fits():
    def forward(net, x):
        stem = net.norm(net.stem(x)).relu()
        branch = net.expand(stem)  # read by an addition only
        y = stem + net.drop(branch)  # no activation function follows
        y = net.bottleneck(y)  # read by a layer
        gate = torch.sigmoid(net.gate(y.mean((2, 3), keepdim=True)))
        y = net.last(y * gate)
        y = functional.relu(functional.max_pool2d(y, 2))
        return net.head(functional.avg_pool2d(y, y.size()[3]).view(y.size(0), -1))

    one = {name: nn.Conv2d(3, 3, 1) for name in ("stem", "expand", "bottleneck", "gate", "last")}
    found = named_roles(from_forward(forward, **one, norm=nn.BatchNorm2d(3), drop=nn.Dropout(), head=nn.Linear(3, 4)))
    assert found == {
        "input": "input",
        "relu": "activation",
        "expand": "addend",
        "add": "sum",
        "bottleneck": "linear",
        "mean": "pooled",
        "sigmoid": "activation",
        "mul": "other",
        "relu_1": "activation",
        "avg_pool2d": "pooled",
        "head": "logits",
    }
    assert set(found.values()) <= set(Placement.model_fields)


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
        "cat": "other",
        "relu": "activation",
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
    expected = {"input": "input", "2": "activation", "4": "linear", "5": "logits"}
    assert named_roles(network, fold=False) == expected


def test_all_outputs_of_a_network_are_logits():
    def forward(net, x):
        y = net.stem(x).relu()
        return {"boxes": net.boxes(y).flatten(1), "features": y}

    found = named_roles(from_forward(forward, stem=nn.Conv2d(3, 3, 1), boxes=nn.Conv2d(3, 4, 1)))
    assert found == {"input": "input", "relu": "logits", "boxes": "logits"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"activation": 17, "logits": 1, "addend": 11, "pooled": 1, "input": 1}),
        ("resnet50", {"activation": 49, "logits": 1, "addend": 20, "pooled": 1, "input": 1}),
        (
            "mobilenet_v2",
            {"activation": 35, "linear": 7, "sum": 10, "logits": 1, "addend": 10, "pooled": 1, "input": 1},
        ),
        (
            "mobilenet_v3_small",  # nine squeeze-excite gates: pooled, two activations (one of which gates), a product
            {"activation": 42, "other": 9, "linear": 5, "sum": 6, "addend": 6, "pooled": 10, "logits": 1, "input": 1},
        ),
    ],
)
def test_roles_of_torchvision_networks(name, expected):
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
    assert Counter(named_roles(network, (3, 64, 64)).values()) == expected


def test_roles_of_a_cifar_resnet_20():
    counts = Counter(named_roles(CifarResNet(20), (3, 32, 32)).values())
    assert counts == {"activation": 19, "addend": 9, "pooled": 1, "logits": 1, "input": 1}


def test_a_network_that_cannot_be_traced_is_one_clear_error():
    branching = from_forward(lambda _, x: x if x.sum() > 0 else -x)
    with pytest.raises(ZSQBenchError, match=r"Sequential cannot be traced in module '1' \(.*control flow"):
        capture(nn.Sequential(nn.ReLU(), branching), (3, 8, 8))


def test_images_of_the_wrong_size_are_one_clear_error():
    with pytest.raises(ZSQBenchError, match=r"does not take images of size \(1, 8, 8\)"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 8, 8))


def test_weights_that_no_quantizer_reaches_are_an_error():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, 1, 1))

        def forward(self, x):
            return functional.conv2d(x, self.weight)

    for network in (Functional(), nn.Sequential(nn.ConvTranspose2d(3, 4, 1))):
        with pytest.raises(ZSQBenchError, match=r"the weight of '.*' \(conv.*\) cannot be quantized"):
            check_supported(capture(network, (3, 8, 8)))


def test_capturing_leaves_the_module_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    capture(network, (3, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_only_means_over_height_and_width_pool():
    def forward(net, x):
        y = net.conv(x)
        channels = y.mean(1, keepdim=True)
        scale = y.mean()
        return net.head((y * channels * scale).mean(3).mean(2))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(3, 2)))
    assert [found[name] for name in ("mean", "mean_1", "mean_2", "mean_3")] == ["other", "other", "pooled", "other"]


def test_what_reads_only_the_shape_of_a_tensor_does_not_count():
    def forward(net, x):
        y = net.conv(x)
        return net.head((y + x).view(y.size(0), -1))

    found = named_roles(from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2)))
    assert found["conv"] == "addend"
