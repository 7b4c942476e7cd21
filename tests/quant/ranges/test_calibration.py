import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_minmax,
    calibrate_activations_mse,
    calibrate_weights,
    mse80,
    prepare,
    switched,
    weight_quantizers,
)
from zsqbench.scheme import parse_scheme

SIZE = (3, 4, 4)


@pytest.fixture
def student():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    return prepare(network, parse_scheme("hw/w3a3"), SIZE)


@pytest.fixture
def images():
    return torch.randn(6, *SIZE, generator=torch.Generator().manual_seed(1))


def watch_inputs(student):
    """What each activation quantizer is given, by name."""
    seen = {}
    for name, quantizer in activation_quantizers(student):
        quantizer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    return seen


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_weights_get_a_range_per_output_channel_that_holds_zero(student, ranges):
    calibrate_weights(student, ranges)
    for _, quantizer in weight_quantizers(student):
        assert quantizer.enabled
        assert (quantizer.scale > 0).all()
        assert (quantizer.zero_point >= 0).all()
        assert (quantizer.zero_point <= 7).all()


def test_minmax_is_the_range_over_all_batches(student, images):
    seen = watch_inputs(student)
    calibrate_activations_minmax(student, images.split(2))
    for name, quantizer in activation_quantizers(student):
        values = torch.cat(seen[name])
        span = values.max().clamp(min=0) - values.min().clamp(max=0)
        torch.testing.assert_close(quantizer.scale * 7, span)


def test_the_search_sees_inputs_that_are_already_quantized(student, images):
    calibrate_weights(student, "mse")
    seen = watch_inputs(student)
    calibrate_activations_mse(student, images)
    (first, of_first), (second, of_second) = activation_quantizers(student)[:2]
    rounded = of_first(seen[first][0])
    assert len(rounded.unique()) <= 8
    with torch.no_grad():
        again = student.get_submodule("3")(student.get_submodule("2")(rounded))
    assert torch.equal(again, seen[second][0])
    low, high = mse80(again, 3, zero=True)
    torch.testing.assert_close(of_second.scale, (high - low) / 7)


def test_calibration_leaves_no_hooks(student, images):
    calibrate_activations_mse(student, images)
    calibrate_activations_minmax(student, [images])
    assert not any(quantizer._forward_pre_hooks for _, quantizer in activation_quantizers(student))


def test_quantizers_can_be_switched_off_for_a_while(student, images):
    before = student(images)
    calibrate_weights(student, "mse")
    quantized = student(images)
    assert not torch.equal(quantized, before)
    with switched([quantizer for _, quantizer in weight_quantizers(student)], enabled=False):
        assert torch.equal(student(images), before)
    assert torch.equal(student(images), quantized)


@pytest.mark.parametrize("calibrate", [calibrate_activations_mse, lambda s, x: calibrate_activations_minmax(s, [x])])
def test_a_tensor_of_several_levels_has_one_quantizer_that_has_seen_them_all(calibrate):
    def forward(net, x):
        return net.tower(4 * x), net.tower(x[..., ::2, ::2])  # the wider one first: the last alone would not do

    net = from_forward(forward, tower=nn.Conv2d(3, 2, 1))
    student, images = prepare(net, parse_scheme("hw/w8a8"), SIZE), torch.randn(2, *SIZE)
    calibrate(student, images)
    quantizer = dict(activation_quantizers(student))["tower"]
    values = net(images)[0]
    assert float(quantizer.scale * 255) == pytest.approx(float(values.max() - values.min()), rel=0.1)
