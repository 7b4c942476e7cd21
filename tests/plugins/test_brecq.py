import itertools
import math

import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins.brecq import BRECQ

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import activation_quantizers, quantized_layers
from zsqbench.scheme import PLACEMENTS, Placement, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"weight_iterations": 20, "activation_iterations": 10, "batch_size": 8, "rounding_lr": 0.02}


def quantized(quantizer, scheme="hw/w3a4", ctx=None, placements=PLACEMENTS):
    teacher, scheme = tiny_teacher(), parse_scheme(scheme, placements)
    student = quantizer.prepare(teacher, scheme)
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    ctx = ctx or context()
    ctx.scheme = scheme
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx)
    return student


def units_of(ctx, stage):
    prefix = f"reconstruction/{stage}/"
    return [name.removeprefix(prefix) for name in ctx.reporter.curves if name.startswith(prefix)]


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hw_strict/w3a8", "hast/w4a4", "academic/w2a4", "hw/w2a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(BRECQ(**SHORT), scheme, tiny_teacher())


def test_each_loss_is_another_one():
    found = []
    for loss in ("mse", "fisher_diag", "fisher_full"):
        ctx = context()
        quantized(BRECQ(**SHORT, loss=loss), ctx=ctx)
        unit = units_of(ctx, "weights")[0]
        found.append([value for _, value in ctx.reporter.curves[f"reconstruction/weights/{unit}"]])
    assert all(math.isfinite(value) for values in found for value in values)
    assert not any(one == other for one, other in itertools.combinations(found, 2))


def test_both_stages_go_through_all_units():
    ctx = context()
    quantized(BRECQ(**SHORT), ctx=ctx)
    assert units_of(ctx, "weights") == units_of(ctx, "activations") != []


@pytest.mark.parametrize(("scheme", "is_kept"), [("hw/w4a4", False), ("academic/w4a4", True), ("academic/w8a8", True)])
def test_a_stem_of_its_own_width_is_left_out_of_both_stages(scheme, is_kept):
    ctx = context()
    student = quantized(BRECQ(**SHORT), scheme, ctx)
    stem = quantized_layers(student)[0][0]
    assert (stem not in units_of(ctx, "weights")) == is_kept
    assert (stem not in units_of(ctx, "activations")) == is_kept


@pytest.mark.parametrize(
    ("tensors", "learned"),
    [
        ({"stem.0": {"weight": 3}}, ["stem.0", "inner.0", "depthwise.0", "classifier"]),
        ({"stem.0": {"weight": "float"}}, ["inner.0", "depthwise.0", "classifier"]),
        ({"classifier": {"weight": 6}}, ["inner.0", "depthwise.0", "classifier"]),
    ],
)
def test_a_stem_whose_bits_a_pattern_sets_is_learned_as_any_other_layer(tensors, learned):
    ctx, own = context(), Placement.model_validate(PLACEMENTS["academic"].model_dump() | {"tensors": tensors})
    quantized(BRECQ(**SHORT), "own/w2a4", ctx, {"own": own})
    assert units_of(ctx, "weights") == learned


def test_layers_can_be_the_units():
    ctx = context()
    student = quantized(BRECQ(**SHORT, units="layer"), ctx=ctx)
    assert units_of(ctx, "weights") == [path for path, _ in quantized_layers(student)]


def test_float_activations_have_no_second_stage():
    ctx = context()
    student = quantized(BRECQ(**SHORT), "hw/w3a32", ctx)
    assert activation_quantizers(student) == []
    assert units_of(ctx, "activations") == []


def test_float_weights_have_no_first_stage():
    ctx = context()
    quantized(BRECQ(**SHORT), "hw/w32a4", ctx)
    assert units_of(ctx, "weights") == []
    assert units_of(ctx, "activations") != []


def test_the_presets_are_those_of_dgh_and_of_the_paper():
    def values(**options):
        found = BRECQ(**options).resolved(tiny_teacher())
        return found.loss, found.activation_lr, found.search_images, found.layer_draws

    assert values() == ("mse", 4e-4, 512, "epoch")
    assert values(preset="paper") == ("fisher_diag", 4e-5, 64, "permutation")
    assert values(preset="paper", loss="mse")[0] == "mse"


def test_going_on_from_a_checkpoint_gives_the_same_network():
    ctx = context()
    expected = quantized(BRECQ(**SHORT), ctx=ctx).state_dict()
    for state in ctx.reporter.states[::2]:
        found = quantized(BRECQ(**SHORT), ctx=context(resume_from=state)).state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_needs_to_know_the_scheme():
    teacher = tiny_teacher()
    student = BRECQ().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs the student's scheme"):
        BRECQ().quantize(student, teacher, CalibrationSet(torch.zeros(32, *teacher.input_size)), context())


def test_pot_is_not_its_grid():
    assert "grid" in BRECQ().rejects(parse_scheme("pot/w8a8"))


def test_it_needs_images():
    teacher = tiny_teacher()
    student = BRECQ().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        BRECQ().quantize(student, teacher, None, context())
