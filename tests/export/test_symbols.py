"""A student is made of ONNX's operators before torch's exporter writes it down."""

import pytest
import torch
from exportnets import images, pretrained, student_of

from zsqbench.errors import ZSQBenchError
from zsqbench.export.integers import with_integer_biases
from zsqbench.export.symbols import with_symbols
from zsqbench.quant import activation_quantizers, quantized_layers


def symbols(name, scheme, quantizer="rtn"):
    integers = with_integer_biases(student_of(pretrained(name), scheme, quantizer))
    return integers.student, with_symbols(integers.student, integers.biases)


def test_weights_are_signed_integers_around_zero_with_a_scale_for_each_channel():
    student, made = symbols("gated", "qdq/w4a8")
    for path, layer in quantized_layers(student):
        stored = made.get_submodule(path)
        assert (stored.codes.dtype, stored.zero_point.dtype, stored.axis) == (torch.int8, torch.int8, 0)
        assert stored.codes.min() >= -8
        assert stored.codes.max() <= 7
        assert not stored.zero_point.any()
        by_channel = stored.scale.view(-1, *[1] * (stored.codes.dim() - 1))
        torch.testing.assert_close(stored.codes * by_channel, layer.quantized_weight(), rtol=1e-6, atol=0)


def test_one_grid_for_a_weight_has_no_axis():
    student, made = symbols("straight", "hw_strict/w8a8", "dfq")
    for path, layer in quantized_layers(student):
        stored = made.get_submodule(path)
        assert (stored.axis, stored.scale.dim(), stored.zero_point.dim()) == (None, 0, 0)
        values = (stored.codes.float() - stored.zero_point) * stored.scale
        torch.testing.assert_close(values, layer.quantized_weight(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "dtype"), [(4, torch.uint8), (8, torch.uint8), (9, torch.uint16), (16, torch.uint16)])
def test_activations_are_unsigned_integers_of_as_many_bits_as_they_need(bits, dtype):
    student, made = symbols("straight", f"qdq/w8a{bits}")
    for name, quantizer in activation_quantizers(student):
        stored = made.get_submodule(f"activation_quantizers.{name}")
        assert (stored.zero_point.dtype, stored.name, stored.top) == (dtype, name, 2**bits - 1)
        assert (float(stored.scale), float(stored.zero_point)) == (float(quantizer.scale), float(quantizer.zero_point))


def test_weights_of_more_than_eight_bits_have_sixteen():
    _, made = symbols("straight", "qdq/w12a8")
    assert made.get_submodule("last").codes.dtype == torch.int16


def test_outputs_have_the_shapes_of_the_students():
    student, made = symbols("shared", "qdq/w8a8")
    given = images(pretrained("shared"), 2)
    with torch.no_grad():
        ours, theirs = student(given), made(given)
    assert theirs["scores"].shape == ours["scores"].shape
    assert [box.shape for box in theirs["boxes"]] == [box.shape for box in ours["boxes"]]


@pytest.mark.parametrize(("kind", "name", "zero_point"), [("weight", "last", -3), ("tensor", "relu", 256)])
def test_a_grid_without_zero_is_one_line(kind, name, zero_point):
    student = student_of(pretrained("straight"), "hw_strict/w8a8")
    found = student.get_submodule("last").weight_quantizer if kind == "weight" else student.activation_quantizers.relu
    with torch.no_grad():
        found.zero_point.flatten()[:1] = zero_point
        if not found.zero_point.dim():
            found.zero_point.fill_(zero_point)
    with pytest.raises(ZSQBenchError) as error:
        with_symbols(student, {})
    text = str(error.value)
    assert text.startswith(f"the grid of {kind} {name!r} does not hold zero: its zero point {zero_point}")
    assert text.endswith("quantize again at a scheme with weight_grid: symmetric, such as qdq/w8a8")
    assert "\n" not in text
