import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.tracing import capture


def relu_module(net, x):
    x = net.conv(x)
    y = net.relu(x)
    return x + y


def relu_argument(net, x):
    x = net.conv(x)
    y = functional.relu(x, True)
    return x + y


def relu_keyword(net, x):
    x = net.conv(x)
    y = functional.leaky_relu(x, 0.1, inplace=True)
    return x + y


def function_with_underscore(net, x):
    x = net.conv(x)
    y = torch.relu_(x)
    return x + y


def method(net, x):
    x = net.conv(x)
    y = x.clamp_(0, 1).mul_(3)
    return x + y


def operator(net, x):
    x = y = net.conv(x)
    y += 1
    y *= 2
    y -= 0.5
    y /= 3
    return x + y


def methods_that_overwrite(net, x):
    x, y, z = net.conv(x), net.conv(x) * 2, net.conv(x) * 3
    same = x
    x.copy_(y)
    y.zero_()
    z.fill_(2)
    w = net.drop(y + 1)
    w.fill_(z.mean())
    return same + y + z + w


def output_argument(net, x):
    x, y = net.conv(x), net.conv(x)
    torch.add(x, 1, out=y)
    return x + y


def item(net, x):
    x = net.conv(x)
    x[:, :2] = x[:, 2:] * 2
    return x + 1


def other_names(net, x):
    x = net.conv(x)
    same = net.drop(x).contiguous()
    y = net.relu(net.identity(same))
    return x + y + same


def of_the_images(net, x):
    y = net.relu(x)
    return net.conv(x) + net.conv(y)


def a_slice(net, x):
    x = net.conv(x)
    net.relu(x[:, :2])
    x[:, 2:, ::2].zero_()
    return x


def a_slice_that_is_read_with_its_tensor(net, x):
    x = net.conv(x)
    part = x[:, 1:3]
    part += 1
    return x.sum(1, keepdim=True) + part


FORMS = [
    relu_module,
    relu_argument,
    relu_keyword,
    function_with_underscore,
    method,
    operator,
    methods_that_overwrite,
    output_argument,
    item,
    other_names,
    of_the_images,
    a_slice,
    a_slice_that_is_read_with_its_tensor,
]


def network(forward):
    torch.manual_seed(0)
    parts = {"relu": nn.ReLU(inplace=True), "drop": nn.Dropout(), "identity": nn.Identity()}
    return from_forward(forward, conv=nn.Conv2d(3, 4, 1), **parts).eval()


@pytest.mark.parametrize("forward", FORMS, ids=lambda forward: forward.__name__)
def test_a_tensor_that_changes_in_place_is_a_new_one_for_all_later_readers(forward):
    net, images = network(forward), torch.randn(2, 3, 8, 8)
    captured = capture(net, (3, 8, 8))
    given = images.clone()
    assert torch.equal(captured(given), net(images.clone()))
    assert torch.equal(given, images)
    assert all(not str(node.target).endswith("_") for node in captured.graph.nodes if node.op == "call_method")
    assert not any(getattr(module, "inplace", False) for module in captured.modules())
    assert net.relu.inplace


def through_a_view(net, x):
    x = net.conv(x)
    net.relu(x.flatten(1))
    return x


def under_a_view(net, x):
    x = net.conv(x)
    y = x.flatten(1)
    net.relu(x)
    return y


@pytest.mark.parametrize("forward", [through_a_view, under_a_view], ids=lambda forward: forward.__name__)
def test_a_change_through_a_view_is_refused(forward):
    with pytest.raises(
        ZSQBenchError, match="'relu' in module 'relu' changes a tensor in place of which a view is read"
    ):
        capture(network(forward), (3, 8, 8))


def test_a_view_that_nobody_reads_later_may_change():
    net = network(lambda net, x: net.relu(net.conv(x).flatten(1)))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(capture(net, (3, 8, 8))(images), net(images))


def test_a_change_that_has_no_other_form_is_refused():
    with pytest.raises(ZSQBenchError, match="'uniform' changes a tensor in place and has no other form"):
        capture(network(lambda net, x: net.conv(x).uniform_()), (3, 8, 8))
