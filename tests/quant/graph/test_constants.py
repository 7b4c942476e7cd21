import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant.graph.constants import CONSTANTS
from zsqbench.quant.graph.tracing import capture


def computing(captured):
    return [node.meta["operator"] for node in captured.graph.nodes if node.op.startswith("call")]


def test_values_of_parameters_alone_are_computed_once():
    def forward(net, x):
        weights = functional.relu(net.fusion)
        weights = weights / weights.sum()
        y = net.conv(x)
        return weights[0] * x + weights[1] * y

    net = from_forward(forward, conv=nn.Conv2d(3, 3, 1), fusion=nn.Parameter(torch.tensor([0.5, 1.5]))).eval()
    captured, images = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    assert computing(captured) == ["conv2d", "mul", "mul", "add"]
    assert [value.item() for value in captured.get_submodule(CONSTANTS).buffers()] == [0.25, 0.75]


def test_equal_expressions_share_one_buffer_and_numbers_are_arguments():
    def forward(net, x):
        size = net.table.shape[0] * 2
        return (x * net.table.exp()).view(-1, size) + (x * net.table.exp()).reshape(-1, size)

    net = from_forward(forward, table=nn.Parameter(torch.arange(8.0)))
    captured, images = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    assert len(list(captured.get_submodule(CONSTANTS).buffers())) == 1


def test_a_module_that_reads_constants_alone_is_one():
    net = from_forward(
        lambda net, x: x + net.position(net.table)[:, None, None],
        position=nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        table=nn.Parameter(torch.ones(3)),
    ).eval()
    captured, images = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    assert computing(captured) == ["add"]


def test_assertions_are_no_part_of_the_graph():
    def forward(net, x):
        torch._assert(x.shape[1] == 3, "colour images")
        return net.conv(x)

    assert computing(capture(from_forward(forward, conv=nn.Conv2d(3, 4, 1)), (3, 8, 8))) in (
        ["conv2d"],
        ["getattr", "getitem", "eq", "conv2d"],
    )


def test_a_tensor_that_is_filled_with_what_images_decide_is_no_constant():
    def forward(net, x):
        x = net.conv(x)
        return x * x.new_full((1,), 2.0) + torch.zeros_like(x[:1, :1]).fill_(x.mean())

    net = from_forward(forward, conv=nn.Conv2d(3, 4, 1)).eval()
    captured, images = capture(net, (3, 8, 8)), torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))


def test_a_tensor_that_the_size_of_images_decides_is_a_constant():
    def forward(net, x):
        x = net.conv(x)
        mask = x.new_zeros(x.shape[-2:])
        mask[2:, :] = 1
        columns = torch.arange(x.shape[-1], device=x.device) / 8
        ones = x.new_ones(x.shape[0], 1, 1, 1)
        return (x + mask * 2 + columns) * ones

    net = from_forward(forward, conv=nn.Conv2d(3, 4, 1)).eval()
    captured, images = capture(net, (3, 8, 8)), torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    made = [name for name in computing(captured) if name not in ("getattr", "getitem")]
    assert sorted(made) == ["add", "add", "conv2d", "mul", "newones"]  # which the number of images decides
