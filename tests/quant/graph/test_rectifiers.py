import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import effective_map, layer_pairs, prepare
from zsqbench.quant.graph import operator, tensor_name
from zsqbench.quant.graph.tracing import capture
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)

RELU = {
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp(0)": lambda x: x.clamp(0),
    "clamp_(min=0.0)": lambda x: x.clamp_(min=0.0),
    "torch.clamp": lambda x: torch.clamp(x, 0, None),
    "torch.clamp(input=)": lambda x: torch.clamp(input=x, min=0),
    "torch.clip": lambda x: torch.clip(x, min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp up to infinity": lambda x: x.clamp(0, float("inf")),
    "Hardtanh up to infinity": nn.Hardtanh(0, float("inf")),
    "Threshold": nn.Threshold(0, 0),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
    "maximum with a constant": lambda x: torch.maximum(x, torch.tensor(0.0)),
    "maximum of a constant": lambda x: torch.maximum(torch.zeros(1), x),
    "maximum with zeros_like": lambda x: x.maximum(torch.zeros_like(x)),
    "maximum with new_zeros": lambda x: torch.maximum(x, x.new_zeros(x.shape)),
    "maximum with zeros": lambda x: torch.maximum(input=x, other=torch.zeros(())),
    "max": lambda x: torch.max(x, torch.zeros(3, 1, 1)),
}
RELU6 = {
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "torch.clamp": lambda x: torch.clamp(x, min=0.0, max=6.0),
    "Hardtanh": nn.Hardtanh(0.0, 6.0),
    "hardtanh": lambda x: functional.hardtanh(x, 0, 6),
    "hardtanh by names": lambda x: functional.hardtanh(x, max_val=6, min_val=0, inplace=True),
}
OTHERS = {
    "another minimum": (lambda x: x.clamp(min=-1), "clamp"),
    "another maximum": (lambda x: x.clamp(0, 5), "clamp"),
    "no minimum": (lambda x: x.clamp(max=0), "clamp"),
    "clamp_min(1)": (lambda x: x.clamp_min(1), "clampmin"),
    "clamp_max(0)": (lambda x: x.clamp_max(0), "clampmax"),
    "a minimum that is a tensor": (lambda x: x.clamp(min=torch.zeros(())), "clamp"),
    "Hardtanh": (nn.Hardtanh(), "hardtanh"),
    "hardtanh": (functional.hardtanh, "hardtanh"),
    "another threshold": (nn.Threshold(0.1, 0), "threshold"),
    "another value": (lambda x: functional.threshold(x, 0, -1), "threshold"),
    "PReLU": (nn.PReLU(3), "prelu"),
    "LeakyReLU": (nn.LeakyReLU(0.1), "leakyrelu"),
    "leaky_relu": (functional.leaky_relu, "leakyrelu"),
    "leaky_relu_": (functional.leaky_relu_, "leakyrelu"),
    "RReLU": (nn.RReLU(), "rrelu"),
}
NO_FUNCTIONS = {
    "ones": lambda x: torch.maximum(x, torch.ones(1)),
    "zeros and ones": lambda x: torch.maximum(x, torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)),
    "two tensors": lambda x: torch.maximum(x, 2 * x),
    "zeros that broadcast": lambda x: torch.maximum(x, torch.zeros(1, 1, 1, 1, 1))[0],
    "a dimension": lambda x: torch.max(x, 3, keepdim=True)[0],
}


def network(function):
    torch.manual_seed(0)
    modules = {"function": function} if isinstance(function, nn.Module) else {}
    return from_forward(
        lambda net, x: net.last(getattr(net, "function", function)(net.norm(net.conv(x)))),
        conv=nn.Conv2d(3, 3, 1),
        norm=nn.BatchNorm2d(3),
        last=nn.Conv2d(3, 2, 1),
        **modules,
    )


def between(function):
    """The operator between two layers, after it was seen that outputs and tensors are as they should be."""
    net = network(function)
    student, images = prepare(net, parse_scheme("hw_strict/w8a8"), SIZE), 5 * torch.randn(4, *SIZE)
    torch.testing.assert_close(student(images), net(images))
    tensors = [entry.role for entry in effective_map(student) if entry.kind == "activation"]
    (pair,) = layer_pairs(student)
    kind = pair.operator
    assert tensors == ["input", "relu" if kind in ("relu", "relu6") else "activation", "logits"]
    assert (pair.first, pair.second) == ("conv", "last")
    return kind


@pytest.mark.parametrize("function", RELU.values(), ids=RELU)
def test_what_computes_relu_is_relu(function):
    assert between(function) == "relu"


@pytest.mark.parametrize("function", RELU6.values(), ids=RELU6)
def test_what_computes_relu6_is_relu6(function):
    assert between(function) == "relu6"


@pytest.mark.parametrize(("function", "kind"), OTHERS.values(), ids=OTHERS)
def test_other_bounds_and_slopes_are_activation_functions_of_their_own(function, kind):
    assert between(function) == kind


@pytest.mark.parametrize("function", NO_FUNCTIONS.values(), ids=NO_FUNCTIONS)
def test_a_maximum_of_something_else_is_no_relu(function):
    student = prepare(network(function), parse_scheme("hw_strict/w32a8"), SIZE)
    assert "relu" not in [entry.role for entry in effective_map(student)]
    assert [entry.role for entry in effective_map(student) if entry.name == "conv"][1] == "linear"


def test_zeros_that_may_be_trained_make_no_relu():
    net = from_forward(
        lambda net, x: torch.maximum(net.conv(x), net.low), conv=nn.Conv2d(3, 3, 1), low=nn.Parameter(torch.zeros(1))
    )
    assert "relu" not in [operator(node) for node in capture(net, SIZE).graph.nodes]


def test_a_maximum_keeps_its_name_and_constants_that_others_read():
    def forward(net, x):
        zeros = torch.zeros(1)
        return torch.maximum(net.conv(x), zeros) + torch.maximum(net.conv(2 * x), zeros) * zeros

    captured, images = capture(from_forward(forward, conv=nn.Conv2d(3, 3, 1)), SIZE), torch.randn(2, *SIZE)
    names = [tensor_name(node) for node in captured.graph.nodes if operator(node) == "relu"]
    assert names == ["maximum", "maximum_1"]
    torch.testing.assert_close(captured(images), captured.get_submodule("conv")(images).relu())
