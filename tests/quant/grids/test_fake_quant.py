import warnings

import pytest
import torch

from zsqbench.quant import calibrate_activations_minmax, calibrate_weights, finalize, prepare
from zsqbench.scheme import parse_scheme
from zsqbench.zoo.models import load_named

SIZE = (1, 16, 16)


def images(count):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(count))


@pytest.fixture(params=["float weights", "codes"])
def student(request):
    """A calibrated student of the embedded MobileNetV2, before or after its weights became integers."""
    student = prepare(load_named("mobilenetv2").module, parse_scheme("hw_strict/w8a8"), SIZE)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [images(16)])
    if request.param == "codes":
        finalize(student)
    return student.eval()


@pytest.mark.parametrize("gradients", [False, True])
def test_a_trace_of_a_student_computes_what_it_does_for_batches_of_any_size(student, gradients):
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has named torch.export as its successor
        traced = torch.jit.trace(student, images(2))
        assert torch.equal(traced(images(5)), student(images(5)))
        assert torch.equal(traced(images(1000)), student(images(1000)))


def test_an_exported_student_computes_what_it_does_for_batches_of_any_size(student):
    batch = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(student, (images(2),), dynamic_shapes=({0: batch},))
    for count in (1, 5, 1000):
        assert torch.equal(exported.module()(images(count)), student(images(count)))
