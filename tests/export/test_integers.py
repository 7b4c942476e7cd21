"""Students on the biases that a file of integers holds."""

import copy

import pytest
import torch
from exportnets import EVEN, exported, images, pretrained, student_of
from networks import called_twice
from torch import nn

from zsqbench import Pretrained
from zsqbench.export.integers import MOST_BIAS, layer_inputs, with_integer_biases
from zsqbench.quant import activation_quantizers, quantized_layers


def with_biases(student, change):
    """A copy of a student, of which `change` gets the layers by path."""
    student = copy.deepcopy(student)
    change(dict(quantized_layers(student)))
    return student


def test_each_bias_is_within_half_a_step_of_the_product_of_scales():
    student = student_of(pretrained("gated"), "qdq/w8a8")
    made = with_integer_biases(student)
    layers, inputs = dict(quantized_layers(made.student)), layer_inputs(made.student)
    assert made.biases.keys() == layers.keys() == dict(quantized_layers(student)).keys()
    for path, before in quantized_layers(student):
        bias, layer = made.biases[path], layers[path]
        assert bias.codes.dtype == torch.int32
        scale = (layer.weight_quantizer.scale.flatten() * inputs[path].scale).expand_as(bias.scale)
        torch.testing.assert_close(bias.scale, scale)
        half = 0.5 * bias.scale + 1e-7 * before.bias.abs()
        assert ((bias.values() - before.bias).abs() <= half).all()
        assert torch.equal(layer.bias, bias.values())


def test_the_student_itself_stays_as_it_is():
    student = student_of(pretrained("gated"), "qdq/w8a8")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with_integer_biases(student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_channels_whose_bias_would_overflow_get_a_coarser_scale_and_compute_nearly_the_same():
    of = pretrained("gated")
    student = student_of(of, "qdq/w8a8")
    made = with_integer_biases(student)
    assert made.widened == 2
    assert made.biases["last"].codes.abs().max() <= MOST_BIAS
    layers = [dict(quantized_layers(each))["last"] for each in (student, made.student)]
    before, after = (layer.weight_quantizer.scale.flatten() for layer in layers)
    assert ((after > before).nonzero().flatten() == torch.tensor([3, 4])).all()
    assert torch.equal(after[[0, 1, 2, 5, 6, 7]], before[[0, 1, 2, 5, 6, 7]])
    with torch.no_grad():
        difference = (student(images(of)) - made.student(images(of))).abs().max()
    (logits,) = [quantizer for _, quantizer in activation_quantizers(student) if quantizer.role == "logits"]
    assert difference <= logits.scale * 1.01


def test_one_scale_for_all_channels_becomes_one_for_each_where_one_has_to_be_wider():
    student = student_of(pretrained("straight"), "hw_strict/w8a8", "dfq")
    with torch.no_grad():
        student.get_submodule("last").weight_quantizer.scale.fill_(1e-14)
    made = with_integer_biases(student)
    layer = dict(quantized_layers(made.student))["last"]
    assert (layer.weight_quantizer.axis, tuple(layer.weight_quantizer.scale.shape)) == (0, (12, 1, 1, 1))
    assert made.widened > 0


def test_power_of_two_grids_stay_such():
    student = student_of(pretrained("gated"), "pot/w8a8")
    with torch.no_grad():
        student.get_submodule("last").weight_quantizer.scale[3:5] = 2.0**-50
    made = with_integer_biases(student)
    scales = dict(quantized_layers(made.student))["last"].weight_quantizer.scale
    assert made.widened == 2
    assert (torch.frexp(scales).mantissa == 0.5).all()


def test_scales_whose_product_would_vanish_are_widened_too():
    student = student_of(pretrained("straight"), "qdq/w8a8")
    layer = student.get_submodule("last")
    with torch.no_grad():
        layer.weight_quantizer.scale[2] = 1e-38
        layer.bias[2] = 0
        layer_inputs(student)["last"].scale.fill_(1e-8)
    bias = with_integer_biases(student).biases["last"]
    assert (bias.scale > 0).all()
    assert bias.codes[2] == 0


def test_a_layer_without_quantized_input_or_with_several_or_without_bias_has_none():
    assert "stem" not in with_integer_biases(student_of(pretrained("gated"), "hw/w8a8")).biases
    assert "head" not in exported("bounded", "qdq/w8a8").integer.biases
    assert "tower" not in exported("shared", "qdq/w8a8").integer.biases
    twice = Pretrained(called_twice(), (3, 8, 8), *EVEN)
    assert with_integer_biases(student_of(twice, "qdq/w8a8")).biases == {}


def test_inputs_are_seen_through_what_only_moves_values():
    found = {path: quantizer.name for path, quantizer in layer_inputs(exported_moving()).items()}
    assert found == {
        "stem": "input",
        "right": "relu",
        "one": "cat",
        "two": "cat",
        "line": "add",
        "first": "relu_3",
        "second": "relu_4",
    }


def exported_moving():
    return student_of(pretrained("moving"), "qdq/w8a8")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_linear_layer_alone_is_a_layer_too(bits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval().requires_grad_(False)
    student = student_of(Pretrained(net, (3, 8, 8), *EVEN, classes=3), f"qdq/w{bits}a8")
    assert with_integer_biases(student).biases.keys() == {"1"}
