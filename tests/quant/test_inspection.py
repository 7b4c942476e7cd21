import copy

import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import inspection
from zsqbench.quant.inspection import TOLERANCE, check_student, departure, images_for, inspect
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)
HW = parse_scheme("hw/w8a8")


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


def test_a_network_that_can_be_quantized_has_no_blocker():
    found = inspect(network(), HW, SIZE, by_units=True)
    assert (found.blocker, found.weights, found.activations) == (None, 2, 2)
    assert (found.folded, dict(found.unfolded)) == (("0", "3"), {})


def test_the_last_map_is_found():
    assert inspect(network(), HW, SIZE).last_map == (4, 4)
    flat = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval().requires_grad_(False)
    assert inspect(flat, HW, SIZE).last_map == ()


def test_norms_that_stay_say_why():
    net = network()
    scheme = parse_scheme("hast/w8a8")
    assert dict(inspect(net, scheme, SIZE).unfolded) == dict.fromkeys(("1", "4"), "the scheme leaves it")
    net.insert(1, nn.ReLU())
    assert dict(inspect(net, HW, SIZE).unfolded) == {"2": "it reads relu, not a convolution or linear layer"}


def test_a_network_that_cannot_be_traced_is_a_finding():
    found = inspect(from_forward(lambda _, x: x if x.sum() > 0 else -x), HW, SIZE)
    assert found.blocker is not None
    assert "a choice depends on the values in a tensor" in found.blocker


def test_a_student_that_lost_a_norm_is_caught_at_the_layer_that_lost_it(monkeypatch):
    real = inspection.prepare

    def loses_a_norm(module, scheme, size):
        student = real(module, scheme, size)
        student.get_submodule("3").weight.data.mul_(1.001)
        return student

    monkeypatch.setattr(inspection, "prepare", loses_a_norm)
    with pytest.raises(ZSQBenchError, match=r"does not compute what the network does .* departs first"):
        check_student(network(), HW, SIZE)


def test_a_module_whose_output_is_another_one_in_the_graph_is_named():
    class Alternating(nn.Module):
        """Gives another value when it is traced."""

        def forward(self, x):
            return x + 1 if torch.fx._symbolic_trace.is_fx_symbolic_tracing() else x

    net = network()
    net.insert(3, Alternating())
    with pytest.raises(
        ZSQBenchError, match=r"'4' departs first; the outputs by .* of the largest, and 1e-05 is allowed"
    ):
        check_student(net, HW, SIZE)


def test_a_network_that_draws_numbers_says_so():
    net = from_forward(lambda net, x: net.conv(x) + torch.rand_like(x), conv=nn.Conv2d(3, 3, 1))
    with pytest.raises(ZSQBenchError, match="gives other outputs for the same images each time"):
        check_student(net, HW, SIZE)


def test_doubt_in_float32_is_settled_in_float64(monkeypatch):
    net, compared = network(), []
    real = inspection.departure

    def doubtful(found, expected):
        compared.append(torch.is_tensor(found) and found.dtype)
        return 1.0 if found.dtype == torch.float32 else real(found, expected)

    monkeypatch.setattr(inspection, "departure", doubtful)
    check_student(net, HW, SIZE)
    assert compared == [torch.float32, torch.float64]
    assert net[0].weight.dtype == torch.float32


def test_all_tensors_of_an_output_are_compared():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert departure({"x": [a, b]}, {"x": [a, b]}) == 0
    assert departure({"x": [a, b]}, {"x": [a, a]}) == pytest.approx(0.25)
    assert departure((a,), (a, b)) == departure(a, a[:1]) == departure(a, a * torch.inf) == float("inf")
    assert departure(torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf])) == 0
    assert departure(torch.tensor([torch.nan, 1.0]), torch.tensor([0.0, 1.0])) == float("inf")
    assert departure(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 2.0])) == pytest.approx(0.5)
    assert departure(torch.tensor([3]), torch.tensor([4])) == pytest.approx(0.25)


def test_a_departure_through_units_names_the_unit(monkeypatch):
    real = inspection.find_units

    def wrong(student, grain):
        units = real(copy.deepcopy(student), grain)
        units[1].module.get_submodule("3").bias.data.add_(1)
        return units

    monkeypatch.setattr(inspection, "find_units", wrong)
    check_student(network(), HW, SIZE)
    with pytest.raises(ZSQBenchError, match=r"the units of .* do not compute what it does: '3' departs first"):
        check_student(network(), HW, SIZE, by_units=True)


def test_images_are_seeded_and_of_the_networks_kind():
    images = images_for(network().double(), SIZE)
    assert images.shape == (4, *SIZE)
    assert images.dtype == torch.float64
    assert torch.equal(images, images_for(network().double(), SIZE))
    assert TOLERANCE == 1e-5
