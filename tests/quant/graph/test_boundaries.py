import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import find_units, prepare, quantized_layers
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)
INF = float("inf")


def indices_of_topk(net, x):
    x = net.a(x)
    _, index = x.mean((2, 3)).topk(2, 1)
    return net.c(net.b(x).relu()).mean((2, 3)).gather(1, index)


def values_and_indices_of_max(net, x):
    x = net.a(x)
    top = x.flatten(2).max(2)
    return net.c(net.b(x).relu()).flatten(2).gather(2, top.indices[:, :, None])[:, :, 0] + top.values


def argmax(net, x):
    x = net.a(x)
    index = x.flatten(2).argmax(2, keepdim=True)
    return net.c(net.b(x).relu()).flatten(2).gather(2, index)


def indices_of_sort(net, x):
    x = net.a(x)
    order = x.mean((2, 3)).sort(dim=1, descending=True)[1]
    x = net.c(net.b(x).relu())
    return x[torch.arange(x.shape[0])[:, None], order]


def indices_of_pooling(net, x):
    x, index = functional.max_pool2d(net.a(x), 2, return_indices=True)
    return functional.max_unpool2d(net.c(net.b(x).relu()), index, 2)


def mask(net, x):
    x = net.a(x)
    is_large = x.mean(1, keepdim=True) > 0
    return torch.where(is_large, net.c(net.b(x).relu()), x)


def nonzero(net, x):
    x = net.a(x)
    kept = (x.mean((0, 2, 3)) < INF).nonzero()[:, 0]
    return net.c(net.b(x).relu()).index_select(1, kept)


def mean_of_all_images(net, x):
    x = net.a(x)
    mean = x.mean()
    return net.c(net.b(x).relu()) - mean


def stacked_branches(net, x):
    x = net.a(x)
    both = torch.stack([x, 2 * x])
    return net.c(net.b(x).relu()) + both.sum(0)


def more_images(net, x):
    return net.c(functional.pad(net.b(net.a(x)), (0, 0, 0, 0, 0, 0, 1, 1)))[1:-1]


def border_of_minus_infinity(net, x):
    x = net.a(x)
    bordered = functional.pad(x, (1, 1, 1, 1), value=-INF)
    return net.c(net.b(x).relu()) + functional.max_pool2d(bordered, 3, 1)


def masked_attention(net, x):
    x = net.a(x).flatten(2)
    scores = x @ x.transpose(1, 2)
    scores = scores.masked_fill(torch.ones(3, 3).triu(1) > 0, -INF)
    return scores.softmax(2) @ net.c(net.b(x.unflatten(2, (8, 8))).relu()).flatten(2)


FORWARDS = [
    indices_of_topk, values_and_indices_of_max, argmax, indices_of_sort, indices_of_pooling, mask, nonzero,
    mean_of_all_images, stacked_branches, more_images, border_of_minus_infinity, masked_attention,
]  # fmt: skip


def student_of(forward, scheme="hw/w4a32"):
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in "abc"}
    return prepare(from_forward(forward, **layers), parse_scheme(scheme), SIZE)


@pytest.mark.parametrize("grain", ["block", "layer"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_only_finite_tensors_of_images_pass_and_running_the_units_is_running_the_network(forward, grain):
    student, images = student_of(forward), torch.randn(5, *SIZE)
    units = find_units(student, grain)
    values = {"images": images}
    for unit in units:
        values |= unit.run(*(values[name] for name in unit.inputs))
    assert all(value.is_floating_point() and len(value) == 5 for value in values.values())
    assert all(bool(value.isfinite().all()) for value in values.values())
    assert torch.equal(values[units[-1].targets[0]], student(images))
    held = [path for unit in units for path, _ in unit.layers]
    assert held == [path for path, _ in quantized_layers(student)]


@pytest.mark.parametrize("forward", [indices_of_topk, argmax, indices_of_sort, indices_of_pooling, mask])
def test_what_an_index_is_taken_from_joins_no_units(forward):
    units = find_units(student_of(forward), "layer")
    assert [[path for path, _ in unit.layers] for unit in units if unit.layers] == [["a"], ["b"], ["c"]]


def test_a_padding_with_minus_infinity_is_in_one_unit_with_the_pooling_that_reads_it():
    units = find_units(student_of(lambda net, x: net.b(functional.max_pool2d(border(net.a(x)), 3, 1))), "layer")
    computed = [{node.name for node in unit.module.graph.nodes if node.op == "call_function"} for unit in units]
    assert computed[1] == {"pad", "max_pool2d"}
    assert [len(unit.layers) for unit in units] == [1, 0, 1]


def border(x):
    return functional.pad(x, (1, 1, 1, 1), value=-INF)


@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.argmax(1),
        lambda x: x.topk(2, 1),
        lambda x: x.chunk(3, 1),
        lambda x: {"label": x.argmax(1), "sure": x > 0},
        lambda x: x.amax(1, keepdim=True).mean(),
    ],
)
def test_for_an_output_that_cannot_be_compared_what_it_is_computed_from_is_reconstructed(last):
    student = student_of(lambda net, x: last(net.b(net.a(x).relu())))
    units = find_units(student)
    of_last_layer = next(unit for unit in units if "b" in dict(unit.layers))
    assert [name for unit in units for name in unit.targets][-1] in {*of_last_layer.targets, "amax"}
    assert of_last_layer.targets == ("b",)


def test_a_layer_that_only_an_index_is_taken_of_is_reconstructed():
    def forward(net, x):
        x = net.a(x)
        route = net.c(x).mean((2, 3)).argmax(1)
        return net.b(x)[torch.arange(x.shape[0]), route]

    units = find_units(student_of(forward), "layer")
    assert {path: unit.targets for unit in units for path, _ in unit.layers}["c"] == ("c",)
