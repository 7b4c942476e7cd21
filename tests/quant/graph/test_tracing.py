import inspect
import types
from collections import OrderedDict

import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.bn_folding import fold_bn
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.tensor_roles import (
    check_supported,
    roles,
)
from zsqbench.quant.graph.tracing import capture


def named_roles(module, size=(3, 8, 8), *, fold=True):
    captured = capture(module, size)
    if fold:
        fold_bn(captured)
    return {tensor_name(node): role for node, role in roles(captured).items()}


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


def test_a_network_that_cannot_be_traced_is_one_clear_error_with_module_and_line():
    class Branching(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    line = inspect.getsourcelines(Branching)[1] + 2
    expected = (
        f"Sequential cannot be traced in module '1' at {__file__}:{line} "
        "(a choice depends on the values in a tensor): "
        "the computation must not depend on values in tensors; use torch.where for a choice by value, "
    )
    with pytest.raises(ZSQBenchError) as caught:
        capture(nn.Sequential(nn.ReLU(), Branching()), (3, 8, 8))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_networks_own_code_names_its_line():
    network = from_forward(lambda _, x: {}["zzz"] if x is not None else x)
    with pytest.raises(ZSQBenchError, match=rf"cannot be traced at {__file__}:\d+ \('zzz'\)"):
        capture(network, (3, 8, 8))


@torch.fx.wrap
def larger_half(x):
    """A choice by value, as one operator."""
    return x[:, :2] if x[:, :2].sum() > x[:, 2:].sum() else x[:, 2:]


def test_a_wrapped_function_is_one_operator_as_the_error_advises():
    network = from_forward(
        lambda net, x: net.head(larger_half(net.conv(x)).flatten(1)), conv=nn.Conv2d(3, 4, 1), head=nn.Linear(128, 2)
    )
    assert named_roles(network) == {"input": "input", "conv": "linear", "larger_half": "other", "head": "logits"}
    captured, images = capture(network, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    assert torch.equal(captured(images), network.eval()(images))


class Conv1x1(nn.Conv2d):
    """A convolution with arguments of its own, which computes what any other does."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 1)


def test_a_subclass_that_computes_the_same_is_the_same_layer():
    class Norm(nn.BatchNorm2d):
        pass

    network = nn.Sequential(Conv1x1(3, 4), Norm(4), nn.ReLU6(), nn.Flatten(), nn.Linear(256, 2))
    captured = capture(network, (3, 8, 8))
    check_supported(captured)
    fold_bn(captured)
    assert [type(module) for module in captured.children()] == [Conv1x1, nn.ReLU6, nn.Flatten, nn.Linear]
    assert named_roles(network) == {"input": "input", "2": "relu", "4": "logits"}


def test_images_of_the_wrong_size_are_one_clear_error():
    with pytest.raises(ZSQBenchError, match=r"does not take images of size \(1, 8, 8\)"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 8, 8))


def asserting(forward):
    return from_forward(forward, patches=nn.Conv2d(3, 4, 4, 4))


def by_torch(net, x):
    torch._assert(x.shape[2] % 4 == 0, f"Height {x.shape[2]} is no multiple of 4")
    return net.patches(x)


def by_python(net, x):
    assert x.shape[2] % 4 == 0, f"Height {x.shape[2]} is no multiple of 4"
    return net.patches(x)


@pytest.mark.parametrize("forward", [by_torch, by_python])
def test_a_size_that_a_network_itself_does_not_take_is_one_clear_error(forward):
    capture(asserting(forward), (3, 8, 8))
    with pytest.raises(ZSQBenchError) as error:
        capture(asserting(forward), (3, 10, 8))
    assert str(error.value) == "the network does not take images of size (3, 10, 8) (Height 10 is no multiple of 4)"


def test_capturing_leaves_the_module_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    capture(network, (3, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_with_two_inputs_is_refused_with_their_number():
    with pytest.raises(
        ZSQBenchError, match=r"TwoInputs has 2 inputs \(x, y\); expected one, the images; give the others"
    ):
        capture(TwoInputs(), (3, 8, 8))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, return_features=False, target=None):
        x = self.conv(x)
        return x if target is None and not return_features else (x, target)


def test_optional_inputs_are_traced_at_their_defaults():
    captured = capture(Optional(), (3, 8, 8))
    assert [node.op for node in captured.graph.nodes] == ["placeholder", "call_module", "output"]


def test_a_choice_by_sizes_is_made_by_the_sizes():
    def forward(net, x):
        assert x.shape[1] == 3, "colour images"
        if x.dim() != 4 or x.size(-1) < 4:
            raise ValueError("too small")
        x = net.conv(x)
        return x.mean((2, 3)) if x.shape[1] > 3 else x

    network = from_forward(forward, conv=nn.Conv2d(3, 4, 1))
    captured, images = capture(network, (3, 8, 8)), torch.randn(5, 3, 8, 8)
    assert torch.equal(captured(images), network.eval()(images))


def test_a_choice_by_the_number_of_images_is_refused():
    network = from_forward(
        lambda net, x: net.conv(x) if len(x.shape) == 4 and x.shape[0] == 2 else x, conv=nn.Conv2d(3, 3, 1)
    )
    with pytest.raises(ZSQBenchError, match="a choice depends on the number of images"):
        capture(network, (3, 8, 8))


def test_a_choice_by_a_parameter_is_made_by_its_value():
    network = from_forward(lambda net, x: net.conv(x) if net.conv.weight.sum() > 0 else x, conv=nn.Conv2d(3, 3, 1))
    nn.init.ones_(network.conv.weight)
    assert "conv" in named_roles(network)


@pytest.mark.parametrize("where", ["", "conv", "norm"])
@pytest.mark.parametrize("kind", ["hook", "pre_hook", "forward", "call"])
def test_hooks_and_methods_of_an_instance_are_part_of_the_graph(where, kind):
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), pool=nn.Flatten())
    )
    part = network.get_submodule(where)
    if kind == "hook":
        part.register_forward_hook(lambda _, __, output: output + 1)
    elif kind == "pre_hook":
        part.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    elif kind == "forward":
        part.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, part)
    else:
        part.__class__ = type("Own", (type(part),), {"__call__": lambda self, x: nn.Module.__call__(self, x) + 1})
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(capture(network, (3, 8, 8))(images), network.eval()(images))


def test_a_view_in_channels_last_names_the_layout():
    network = from_forward(lambda net, x: net.conv(x).view(x.shape[0], -1), conv=nn.Conv2d(3, 4, 3))
    capture(network, (3, 8, 8))
    with pytest.raises(
        ZSQBenchError, match="'view' takes a view of a tensor that is not contiguous, as all are in layout"
    ):
        capture(network.to(memory_format=torch.channels_last), (3, 8, 8))


def test_a_function_set_on_a_module_that_calls_that_very_module_is_refused_with_what_to_do():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    forward = network[0].forward
    network[0].forward = lambda x: forward(x) + 1
    with pytest.raises(
        ZSQBenchError, match=r"calls that very module, .* set it with types.MethodType, or write a subclass"
    ):
        capture(network, (3, 8, 8))
