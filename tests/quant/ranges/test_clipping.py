import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench.quant import calibrate_activations_minmax, calibrate_weights, counted_clipping, finalize, prepare
from zsqbench.quant.grids.fake_quant import ActivationQuantizer
from zsqbench.scheme import parse_scheme


def outputs(shape=()):
    """A network that gives what it is given, through a quantizer of 0 .. 15 in steps of one."""
    quantizer = ActivationQuantizer("out", "logits", 4, axis=None, shape=())
    quantizer.set_parameters(torch.tensor(1.0), torch.tensor(0.0))
    return from_forward(lambda net, x: net.out(x.reshape(len(x), *shape) if shape else x), out=quantizer)


def share(net, *batches):
    with counted_clipping(net, "logits") as clipping:
        for batch in batches:
            net(torch.tensor(batch))
    return clipping.shares


def test_an_image_is_clipped_where_several_of_its_values_lie_beyond_the_upper_end():
    values = [
        [16.0, 17.0, 3.0],
        [16.0, 15.0, 3.0],  # one alone stays the largest
        [15.4, 15.3, 15.2],  # these are rounded to the end
        [-9.0, -8.0, -7.0],  # nothing decides among the smallest
    ]
    assert share(outputs(), values) == {"out": 0.25}


def test_batches_of_any_size_are_counted_together():
    assert share(outputs(), [[16.0, 17.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) == {"out": 0.25}


def test_a_value_alone_and_values_at_many_places_are_counted_by_image():
    assert share(outputs(), [[16.0], [3.0]]) == {"out": 0.5}
    assert share(outputs((1, 2, 2)), [[16.0, 0.0, 0.0, 17.0], [16.0, 0.0, 0.0, 0.0]]) == {"out": 0.5}


def test_what_was_not_computed_or_has_another_role_or_no_grid_yet_is_not_counted():
    net = outputs()
    assert share(net) == {}
    with counted_clipping(net, "input") as clipping:
        net(torch.full((1, 2), 99.0))
    assert clipping.shares == {}
    net.out.enabled = False
    assert share(net, [[99.0, 98.0]]) == {}


def test_counting_changes_no_bit_and_leaves_no_hook():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 20)).eval()
    student = prepare(network, parse_scheme("hw/w8a8"), (3, 4, 4))
    images = 3 * torch.randn(100, 3, 4, 4)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [images[:4] / 2])
    finalize(student)
    with torch.no_grad():
        plain = student(images)
        with counted_clipping(student, "logits") as clipping:
            assert torch.equal(student(images), plain)
    (clipped,) = clipping.shares.values()
    assert clipped == pytest.approx((plain == plain.max()).sum(1).ge(2).float().mean().item())
    assert 0 < clipped < 1
    assert not any(module._forward_pre_hooks for module in student.modules())
