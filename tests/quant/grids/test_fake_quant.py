import warnings

import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import calibrate_activations_minmax, calibrate_weights, finalize, prepare
from zsqbench.quant.grids.fake_quant import quantized_layer
from zsqbench.quant.grids.transposed import TransposedConv2d
from zsqbench.scheme import parse_scheme

SIZE = (1, 16, 16)


def images(count):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(count))


def network():
    """A small network with all that MobileNetV2 has: BatchNorm, ReLU6, a depthwise convolution, a residual addition."""

    def forward(net, x):
        x = functional.relu6(net.norm(net.stem(x)))
        x = net.last(functional.relu6(net.deep(x))) + x
        return net.head(x.mean((2, 3)))

    torch.manual_seed(0)
    return from_forward(
        forward,
        stem=nn.Conv2d(1, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        deep=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        last=nn.Conv2d(4, 4, 1),
        head=nn.Linear(4, 3),
    )


@pytest.fixture(params=["float weights", "codes"])
def student(request):
    """A calibrated student, before or after its weights became integers."""
    student = prepare(network(), parse_scheme("hw_strict/w8a8"), SIZE)
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


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, (3, 2), (1, 2), padding=(1, 0), padding_mode="reflect"), (2, 4, 9, 8)),
        (nn.Conv1d(4, 6, 3, 2, padding=1, groups=2), (2, 4, 9)),
        (TransposedConv2d.of(nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2)), (2, 4, 5, 6)),
        (TransposedConv2d.of(nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), padding=(2, 0), dilation=(2, 1))), (2, 4, 5, 6)),
        (TransposedConv2d.of(nn.ConvTranspose2d(4, 6, 2, 1, padding=2)), (2, 4, 5, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_times_unfolded_inputs_are_the_layers_outputs(layer, shape):
    quantized = quantized_layer(layer, "layer", "weight", 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    taps = quantized.unfolded(x)
    weight = quantized.weight.detach().view(taps.shape[1], -1, taps.shape[2])
    made = (weight @ taps).flatten(1, 2)
    expected = quantized.computed(x, quantized.weight.detach(), None)
    if isinstance(layer, nn.Linear):
        expected = expected.flatten(0, -2).T
    torch.testing.assert_close(made.view(expected.shape), expected, rtol=1e-5, atol=1e-6)
