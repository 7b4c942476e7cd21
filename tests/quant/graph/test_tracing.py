import inspect

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
        "(symbolically traced variables cannot be used as inputs to control flow): "
        "what is computed may not depend on the values in tensors; take torch.where for a choice by value, "
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


def test_capturing_leaves_the_module_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    capture(network, (3, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_with_two_inputs_is_refused_with_their_number():
    with pytest.raises(ZSQBenchError, match="has 2 inputs; expected one, the images"):
        capture(TwoInputs(), (3, 8, 8))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y
