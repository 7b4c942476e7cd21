"""Shipped quantizers at qdq: symmetric weights, tensors before hard-swish and its like, pixels as codes."""

import functools

import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench import CalibrationSet, Pretrained
from zsqbench.plugins import load_plugins
from zsqbench.quant import activation_quantizers, finalize, quantized_layers, restore, weight_quantizers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context
from zsqbench.testing.conformance import reduce_options

SIZE = (3, 8, 8)
MEAN, STD = 0.449, 0.226
QUANTIZERS = sorted(
    name
    for (kind, name), provided in load_plugins().provided.items()
    if kind == "quantizer"
    and name not in {"fp32", "mixed", "qdrop", "repq_vit"}
    and not provided.method.needs_training_loss
)


def mobilenet():
    """A stem, and a block with squeeze-excite, as MobileNetV3 has them; a ReLU6 that is fused; a classifier."""

    def forward(net, x):
        y = net.swish(net.norm(net.stem(x)))
        z = net.swish(net.norm_depth(net.depth(y)))
        z = z * net.gate(net.excite(net.relu(net.squeeze(z.mean((2, 3), keepdim=True)))))
        y = net.norm_project(net.project(z)) + y
        y = net.relu6(net.norm_last(net.last(y)))
        return net.head(y.mean((2, 3)))

    return from_forward(
        forward,
        stem=nn.Conv2d(3, 8, 3, 2, padding=1, bias=False),
        norm=nn.BatchNorm2d(8),
        swish=nn.Hardswish(),
        depth=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        norm_depth=nn.BatchNorm2d(8),
        squeeze=nn.Conv2d(8, 4, 1),
        relu=nn.ReLU(),
        excite=nn.Conv2d(4, 8, 1),
        gate=nn.Hardsigmoid(),
        project=nn.Conv2d(8, 8, 1, bias=False),
        norm_project=nn.BatchNorm2d(8),
        last=nn.Conv2d(8, 12, 1, bias=False),
        norm_last=nn.BatchNorm2d(12),
        relu6=nn.ReLU6(),
        head=nn.Linear(12, 5),
    )


def noise(seed=0):
    """Normal images that go beyond valid pixels on one side and never reach them on the other."""
    return torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(seed)) + 1


@functools.cache
def teacher():
    torch.manual_seed(0)
    module = mobilenet().train()
    for _ in range(50):
        module(noise())
    return Pretrained(module.eval().requires_grad_(False), SIZE, (MEAN,) * 3, (STD,) * 3, classes=5)


@functools.cache
def quantized(name, scheme):
    """The finished student, and a fresh one that its artifact was loaded into."""
    scheme, method = parse_scheme(scheme), load_plugins().find("quantizer", name).method
    trains = "updates_per_epoch" in method.model_fields
    method, _ = reduce_options(method, {"epochs": 1, "updates_per_epoch": 2} if trains else {})
    method = method.resolved(teacher(), scheme)
    assert method.rejects(scheme) is None
    student = method.make_student(teacher(), scheme)
    method.quantize(
        student, teacher(), CalibrationSet(noise()) if method.needs_images else None, context(scheme=scheme)
    )
    finalize(student)
    fresh = method.make_student(teacher(), scheme)
    restore(fresh, student.state_dict())
    return student, fresh


each_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
BOTH = "both widths of weights for all quantizers take a minute"
each_scheme = pytest.mark.parametrize("scheme", ["qdq/w8a8", pytest.param("qdq/w4a8", marks=pytest.mark.slow(BOTH))])


@each_scheme
@each_quantizer
def test_weights_are_symmetric_around_the_middle_code(name, scheme):
    student, _ = quantized(name, scheme)
    for path, quantizer in weight_quantizers(student):
        assert (quantizer.zero_point == 2 ** (quantizer.bits - 1)).all(), path
    for path, layer in quantized_layers(student):
        signed = layer.weight_codes.int() - 2 ** (layer.weight_quantizer.bits - 1)
        assert torch.equal(signed * layer.weight_quantizer.scale, layer.quantized_weight()), path


@each_scheme
@each_quantizer
def test_every_tensor_before_an_activation_function_that_is_not_fused_is_rounded(name, scheme):
    student, _ = quantized(name, scheme)
    found = {path: each for path, each in activation_quantizers(student) if each.role == "preactivation"}
    assert found.keys() == {"stem", "depth", "excite"}
    assert all((each.enabled, each.bits) == (True, 8) for each in found.values())


@each_scheme
@each_quantizer
def test_the_codes_of_the_image_are_its_pixels_and_the_artifact_keeps_them(name, scheme):
    pixels = torch.arange(256.0)
    for student in quantized(name, scheme):
        (image,) = (each for _, each in activation_quantizers(student) if each.role == "input")
        assert (image.scale.item(), image.zero_point.item()) == (pytest.approx(1 / (255 * STD)), 114)
        codes = image((pixels / 255 - MEAN) / STD) / image.scale + image.zero_point
        assert torch.equal(codes.round(), pixels)


@each_scheme
@each_quantizer
def test_the_quantized_network_is_close_and_comes_back_from_its_artifact(name, scheme):
    student, fresh = quantized(name, scheme)
    images = ((noise(1).sigmoid() * 255).round() / 255 - MEAN) / STD
    expected, found = teacher().module(images), student.eval()(images)
    assert torch.equal(fresh.eval()(images), found)
    assert ((found - expected).square().mean() / expected.var()).item() < 0.2


def test_qdrop_has_symmetric_weights_too():
    """At four bits: its search of activations tries all zero points, which takes long at eight."""
    student, _ = quantized("qdrop", "qdq/w4a4")
    assert all((quantizer.zero_point == 8).all() for _, quantizer in weight_quantizers(student))
