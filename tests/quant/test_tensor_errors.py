import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from tests.networks import called_twice
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_mse,
    calibrate_weights,
    finalize,
    measure_errors,
    prepare,
    quantized_layers,
    weight_quantizers,
)
from zsqbench.quant.student import Grids
from zsqbench.quant.tensor_errors import NO_ERROR, NOT_REACHED, OFF, SILENT
from zsqbench.scheme import parse_scheme
from zsqbench.testing.networks import tiny_teachers

SCHEME = parse_scheme("hw/w4a4")


@pytest.fixture(scope="module")
def measured():
    """A tiny network, its student, images (more than a batch), and the errors of the student's tensors."""
    torch.manual_seed(0)
    teacher = tiny_teachers()["plain BN"]
    images = torch.randn(11, *teacher.input_size)
    student, reference = (prepare(teacher.module, SCHEME, teacher.input_size).eval() for _ in range(2))
    calibrate_weights(student, "mse")
    calibrate_activations_mse(student, images)
    finalize(student)
    return teacher, student, images, measure_errors(student, reference, images, 2 * images)


def linear(weight):
    """A linear layer, whose input, weight and output have 2 bits: prepared twice, the first with these grids set."""
    layer = nn.Linear(2, 1, bias=False).eval().requires_grad_(False)
    layer.weight.copy_(torch.tensor([weight]))
    network = nn.Sequential(nn.Flatten(), layer)
    scheme = parse_scheme("hw/w2a2")
    placement = scheme.placement.model_copy(update={"input": "a", "tensors": {}})
    return [
        prepare(network, scheme.model_copy(update={"placement": placement}), (1, 1, 2), Grids(per_channel=False))
        for _ in range(2)
    ]


def decibels(signal, error):
    return 10 * math.log10(signal / error)


def test_numbers_equal_those_that_were_computed_by_hand():
    student, reference = linear([1.2, -0.9])
    ((_, layer),) = quantized_layers(student)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    layer.weight_quantizer.set_parameters(one, torch.tensor(2.0))  # -2, -1, 0, 1
    grids = dict(activation_quantizers(student))
    grids["input"].set_parameters(one, zero)  # 0, 1, 2, 3
    grids["1"].set_parameters(2 * one, zero)  # 0, 2, 4, 6
    # the inputs become 1 2 and 3 0: one of four lies beyond the grid by more than half a step
    images = torch.tensor([[[[1.25, 2.0]]], [[[4.0, 0.0]]]])

    found = measure_errors(student, reference, images, None)

    image, weight, output = found.tensors
    assert (image.name, weight.name, output.name) == ("input", "1", "1")
    assert image.sqnr == image.own == pytest.approx(decibels(1.25**2 + 4 + 16, 0.25**2 + 1))
    assert (image.clipped, image.codes) == (0.25, 1.0)
    assert weight.sqnr == pytest.approx(decibels(1.2**2 + 0.9**2, 0.2**2 + 0.1**2))
    assert (weight.clipped, weight.codes) == (0.0, 0.5)
    # floats are 1.5 - 1.8 = -0.3 and 4.8; the layer gives 1 - 2 = -1 and 3, which become 0 (beyond by half a step, to
    # even) and 4
    assert output.sqnr == pytest.approx(decibels(0.3**2 + 4.8**2, 0.3**2 + 0.8**2), rel=1e-5)
    assert output.own == pytest.approx(decibels(1 + 9, 1 + 1))
    assert (output.clipped, output.codes) == (0.0, 0.5)
    assert found.outputs == output.sqnr
    assert (output.sqnr_real, found.outputs_real) == (None, None)


def test_tensors_stand_in_network_order(measured):
    names = [(tensor.kind[0], tensor.name) for tensor in measured[3].tensors]
    assert names == [
        ("w", "stem.0"),
        ("a", "stem.2"),
        ("w", "inner.0"),
        ("a", "relu"),
        ("w", "depthwise.0"),
        ("a", "depthwise.2"),
        ("w", "classifier"),
        ("a", "classifier"),
    ]


def test_the_reference_is_the_float_network(measured):
    teacher, student, images, found = measured
    with torch.no_grad():
        exact, quantized = teacher.module(images), student(images)
    expected = decibels(exact.square().sum().item(), (exact - quantized).square().sum().item())
    assert found.outputs == pytest.approx(expected, rel=1e-4)


def test_the_accumulated_error_is_more_than_the_own_one(measured):
    later = [tensor for tensor in measured[3].tensors if tensor.kind == "activation"]
    assert all(tensor.sqnr < tensor.own for tensor in later)
    assert all(tensor.sqnr_real < tensor.sqnr for tensor in later)  # twice as large: clipped


def test_the_student_and_the_order_of_batches_change_nothing(measured):
    teacher, student, images, found = measured
    reference = prepare(teacher.module, SCHEME, teacher.input_size).eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    again = measure_errors(student, reference, images.flip(0), None)
    assert [tensor.sqnr for tensor in again.tensors] == pytest.approx([tensor.sqnr for tensor in found.tensors])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_a_student_with_its_quantizers_off_has_no_error_and_json_takes_it(measured):
    teacher, _, images, _ = measured
    student, reference = (prepare(teacher.module, SCHEME, teacher.input_size).eval() for _ in range(2))
    found = measure_errors(student, reference, images, images)
    for tensor in found.tensors:
        endings = ("",) if tensor.kind == "weight" else ("", "_real")
        ratios = {f"{name}{ending}": NO_ERROR for name in ("sqnr", "own") for ending in endings}
        assert tensor.absent == ratios | {f"clipped{ending}": OFF for ending in endings} | {"codes": OFF}
    assert (found.outputs, found.absent["outputs"]) == (None, NO_ERROR)
    json.dumps(asdict(found), allow_nan=False)


def test_the_references_quantizers_are_off_and_stay_as_they_were(measured):
    teacher, student, images, found = measured
    reference = prepare(teacher.module, SCHEME, teacher.input_size).eval()
    calibrate_weights(reference, "minmax")
    calibrate_activations_mse(reference, images)
    again = measure_errors(student, reference, images, 2 * images)
    assert [replace(tensor, alone=None) for tensor in again.tensors] == found.tensors
    assert all(quantizer.enabled for _, quantizer in weight_quantizers(reference))


def test_images_of_zeros_have_no_ratio_and_without_images_weights_have_one():
    student, reference = linear([1.2, -0.9])
    calibrate_weights(student, "minmax")
    for _, quantizer in activation_quantizers(student):
        quantizer.set_parameters(torch.tensor(1.0), torch.tensor(0.0))
        quantizer.zero_point.fill_(-1)  # a grid that has no zero
    zeros = measure_errors(student, reference, torch.zeros(1, 1, 1, 2), None)
    assert zeros.tensors[0].absent["sqnr"] == SILENT
    nothing = measure_errors(student, reference, None, None)
    assert [(tensor.own is None, tensor.absent) for tensor in nothing.tensors] == [(True, {}), (False, {}), (True, {})]
    assert nothing.outputs is None


def test_a_layer_that_is_called_twice_is_compared_call_by_call():
    network = called_twice()
    images = torch.randn(3, 3, 6, 6)
    student, reference = (prepare(network, SCHEME, (3, 6, 6)).eval() for _ in range(2))
    calibrate_weights(student, "mse")
    calibrate_activations_mse(student, images)
    found = measure_errors(student, reference, images, None)
    assert {NOT_REACHED} & {why for tensor in found.tensors for why in tensor.absent.values()} == set()
    assert all(tensor.sqnr > 5 for tensor in found.tensors)


def test_a_module_without_quantizers_has_no_tensors():
    found = measure_errors(nn.Identity(), nn.Identity(), torch.ones(1, 3), None)
    assert (found.tensors, found.absent) == ([], {"outputs": NO_ERROR})
