import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import activation_quantizers, prepare
from zsqbench.quant.graph.gradients import finite_gradient
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)


def gradient(forward):
    """The gradient of what a student computes of zeros and ones with a convolution that doubles them."""
    student = student_of(forward)
    student.conv.weight.requires_grad_(True)
    images = torch.zeros(1, *SIZE)
    images[:, 0] = 1.0
    student(images).sum().backward()
    return student.conv.weight.grad[:, 0, 0, 0]


def student_of(forward):
    net = from_forward(forward, conv=nn.Conv2d(3, 2, 1, bias=False))
    net.conv.weight.data = torch.tensor([[2.0, 0, 0], [0, 0, 0]]).view(2, 3, 1, 1)
    return prepare(net, parse_scheme("hw/w8a8"), SIZE)


@pytest.mark.parametrize(
    "root",
    [
        lambda x: x.sqrt(),
        lambda x: x**0.5,
        lambda x: x.pow(exponent=0.5),
        lambda x: torch.pow(x, torch.tensor([0.5])),
        lambda x: x.float_power(0.5).float(),
    ],
)
def test_the_slope_of_a_root_of_zero_is_zero_and_other_slopes_stay(root):
    found = gradient(lambda net, x: root(net.conv(x).mean((2, 3))))
    torch.testing.assert_close(found, torch.tensor([0.5 * 2**-0.5, 0.0]))


@pytest.mark.parametrize("power", [lambda x: x**3, lambda x: torch.pow(2.0, x), lambda x: x.pow(1)])
def test_powers_whose_slope_is_finite_are_left_alone(power):
    targets = [node.target for node in student_of(lambda net, x: power(net.conv(x))).graph.nodes]
    assert finite_gradient not in targets


def test_a_power_of_a_size_is_left_alone():
    student = student_of(lambda net, x: net.conv(x) * x.shape[-1] ** -0.5)
    images = torch.rand(2, *SIZE)
    assert torch.equal(student(images), student.conv(images) * 8**-0.5)
    assert finite_gradient not in [node.target for node in student.graph.nodes]


def test_other_readers_of_what_a_root_is_taken_of_keep_their_gradient():
    def forward(net, x):
        x = net.conv(x).mean((2, 3))
        return x.sqrt() + 5 * x

    torch.testing.assert_close(gradient(forward), torch.tensor([0.5 * 2**-0.5 + 5, 5.0]))


def test_values_and_tensors_are_those_of_the_network():
    def forward(net, x):
        return functional.relu(net.conv(x)).pow(3).mean((2, 3)).pow(1 / 3)

    student, images = student_of(forward), torch.rand(2, *SIZE)
    expected = functional.relu(student.conv(images)).pow(3).mean((2, 3)).pow(1 / 3)
    assert torch.equal(student(images), expected)
    assert [name for name, _ in activation_quantizers(student)] == ["relu", "pow", "pow_1"]


def test_without_gradients_nothing_is_done():
    x = torch.zeros(2)
    assert finite_gradient(x) is x
