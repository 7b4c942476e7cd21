"""Tests of mean_match: that it keeps the contract, and its formula against values that were worked out by hand."""

import pytest
import torch

import zsqbench
from zsqbench.quant import quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher
from zsqbench_example_plugin.mean_match import MeanMatch, mean_outputs

SCHEME = parse_scheme("hw/w4a4")


@pytest.mark.parametrize("scheme", ["hw/w4a4", "academic/w4a4"])
def test_it_keeps_the_contract(scheme):
    check_quantizer(MeanMatch(), scheme)


def test_means_are_over_images_and_places():
    layer = torch.nn.Conv2d(1, 2, 1, bias=False)
    layer.weight.data = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1)
    batches = [torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[[1.0, 1.0]]], [[[3.0, 3.0]]]])]
    assert mean_outputs(layer, {"layer": layer}, batches)["layer"].tolist() == [4, -2]


def test_the_last_layer_gives_the_mean_of_the_float_network():
    teacher, method = tiny_teacher(), MeanMatch(batch_size=5)
    images = torch.randn(12, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    student = method.make_student(teacher, SCHEME)
    method.quantize(student, teacher, zsqbench.CalibrationSet(images), context(scheme=SCHEME))
    last, layer = quantized_layers(student)[-1]
    found = mean_outputs(student, {last: layer}, [images])[last]
    torch.testing.assert_close(found, teacher.module(images).mean(0), rtol=1e-4, atol=1e-5)


def test_it_says_how_far_biases_moved_layer_by_layer():
    teacher, ctx = tiny_teacher(), context(scheme=SCHEME)
    student = MeanMatch().make_student(teacher, SCHEME)
    images = torch.randn(8, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    MeanMatch().quantize(student, teacher, zsqbench.CalibrationSet(images), ctx)
    assert [step for step, _ in ctx.reporter.curves["bias_shift"]] == [0, 1, 2, 3]
    (note,) = ctx.reporter.notes
    assert note.startswith("biases of 4 layers moved, most in ")
