import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins.flexround import FlexRound

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import calibrate_weights, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"iterations": 6, "batch_size": 8}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w4a4", "academic/w3a3", "hw/w2a4", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(FlexRound(**SHORT), scheme, tiny_teacher())


def learned(scheme="hw/w3a32", ctx=None, **options):
    teacher, scheme = tiny_teacher(), parse_scheme(scheme)
    quantizer = FlexRound(**{"batch_size": 8, **options})
    student = quantizer.prepare(teacher, scheme)
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx or context(scheme=scheme))
    return student


def codes(student):
    return {path: layer.weight_quantizer.codes(layer.weight) for path, layer in quantized_layers(student)}


@pytest.mark.parametrize("per_channel", [False, True])
def test_without_iterations_weights_are_rounded_to_nearest(per_channel):
    student, teacher = learned(iterations=0, per_channel=per_channel), tiny_teacher()
    nearest = FlexRound(per_channel=per_channel).prepare(teacher, parse_scheme("hw/w3a32"))
    calibrate_weights(nearest, "mse")
    expected = codes(nearest)
    assert all(torch.equal(found, expected[path]) for path, found in codes(student).items())
    dimensions = {layer.weight_quantizer.scale.dim() > 0 for _, layer in quantized_layers(student)}
    assert dimensions == {per_channel}


def test_learning_changes_codes_and_steps_and_lowers_the_loss():
    ctx = context()
    before, after = learned(iterations=0), learned(ctx=ctx, iterations=60, division_lr=0.02, weight_scale_lr=1e-3)
    old, new = codes(before), codes(after)
    assert any(not torch.equal(old[path], new[path]) for path in old)
    steps = [[layer.weight_quantizer.scale for _, layer in quantized_layers(each)] for each in (before, after)]
    assert any(not torch.equal(*pair) for pair in zip(*steps, strict=True))
    losses = [values for name, values in ctx.reporter.curves.items() if name.startswith("reconstruction/")]
    assert all(last <= first for (_, first), (_, last) in losses)
    assert any(last < 0.9 * first for (_, first), (_, last) in losses)


def test_dropping_changes_what_is_learned():
    first, second = (learned("hw/w3a4", iterations=10, drop=drop).state_dict() for drop in (0.0, 0.5))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_it_needs_images():
    teacher = tiny_teacher()
    student = FlexRound().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        FlexRound().quantize(student, teacher, None, context())


def test_pot_is_not_its_grid():
    assert "grid" in FlexRound().rejects(parse_scheme("pot/w8a8"))
