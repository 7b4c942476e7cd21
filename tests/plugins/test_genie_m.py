import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from zsqbench_plugins.genie_m import GENIEM, _initialize_activations

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    Annealing,
    Grids,
    Memory,
    Rounding,
    Stage,
    StepSizes,
    activation_quantizers,
    effective_map,
    finalize,
    prepare,
    quantized_layers,
    shrink_search,
)
from zsqbench.quant.graph.units import _units, find_units
from zsqbench.quant.reconstruction.activation_cache import ActivationCache
from zsqbench.quant.reconstruction.draws import select
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.soft_rounding import SoftRounding, rectified_sigmoid
from zsqbench.scheme import Placement, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"iterations": 6, "batch_size": 8}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w2a4", "hw/w4a4"], 1)
@parametrize_briefly("fold", [True, False], 1)
def test_it_is_a_quantizer(scheme, fold):
    check_quantizer(GENIEM(**SHORT, fold=fold), scheme, tiny_teacher())


@pytest.mark.parametrize("fold", [False, True])
def test_batch_normalisation_is_folded_on_request_only(fold):
    student = GENIEM(fold=fold).prepare(tiny_teacher(), parse_scheme("hw/w4a4"))
    assert any(isinstance(module, nn.BatchNorm2d) for module in student.modules()) != fold


def test_activations_are_symmetric_and_weights_affine():
    student = GENIEM().prepare(tiny_teacher(), parse_scheme("hw/w4a4"))
    assert {(entry.kind, entry.grid) for entry in effective_map(student) if entry.bits == 4} == {
        ("weight", "affine"),
        ("activation", "symmetric"),
    }


def test_activations_are_clipped_before_they_are_rounded():
    student = GENIEM().prepare(tiny_teacher(), parse_scheme("hw_strict/w4a4"))
    assert all(quantizer.clips_first for _, quantizer in activation_quantizers(student))


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("bits", [3, 4, 8], 1)
def test_signed_activations_have_one_more_code_below_zero(bits):
    student = check_quantizer(GENIEM(**SHORT), f"hw_strict/w4a{bits}", tiny_teacher())
    zero_points = {quantizer.zero_point.item() for _, quantizer in activation_quantizers(student)}
    assert zero_points == {0.0, 2.0 ** (bits - 1)}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("factor", [1e-6, 0.0, 1e-3, 1e-10], 1)
def test_a_channel_that_is_nearly_dead_keeps_a_scale_above_zero(factor):
    teacher = tiny_teacher()
    teacher.module.stem[0].weight.data[0] *= factor
    student = check_quantizer(GENIEM(iterations=50, batch_size=8), teacher=teacher)
    assert all((quantizer.scale > 0).all() for _, quantizer in activation_quantizers(student))


@pytest.mark.usefixtures("briefly")
def test_without_iterations_activations_are_initialised_and_weights_round_to_nearest():
    student = check_quantizer(GENIEM(iterations=0, batch_size=8), teacher=tiny_teacher())
    assert all((quantizer.scale > 0).all() for _, quantizer in activation_quantizers(student))


def test_weights_lie_on_the_grid_of_the_learned_scale():
    teacher, quantizer = tiny_teacher(), GENIEM(iterations=40, batch_size=8, weight_scale_lr=1e-2)
    student = quantizer.prepare(teacher, parse_scheme("hw/w3a4"))
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    quantizer.quantize(student, teacher, CalibrationSet(images), context())
    moved = 0
    for _, layer in quantized_layers(student):
        first = shrink_search(layer.weight, 3, 0)
        grid = layer.weight_quantizer
        codes = layer.quantized_weight() / grid.scale + grid.zero_point
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
        base = (layer.weight / first.scale.view_as(grid.scale)).floor() + grid.zero_point
        assert ((codes - base.clamp(0, 7)).abs() <= 1 + 1e-4).all()
        moved += not torch.equal(grid.scale.flatten(), first.scale)
    assert moved


@parametrize_briefly("scheme", ["qdq/w3a4", "hw/w3a4"], 1)
def test_going_on_from_a_checkpoint_gives_the_same_network(scheme):
    teacher, quantizer = tiny_teacher(), GENIEM(**SHORT, weight_scale_lr=1e-2)
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))

    def quantized(ctx):
        student = quantizer.make_student(teacher, parse_scheme(scheme))
        quantizer.quantize(student, teacher, CalibrationSet(images), ctx)
        finalize(student)
        return student.state_dict()

    ctx = context()
    expected = quantized(ctx)
    assert ctx.reporter.states
    for state in ctx.reporter.states:
        found = quantized(context(resume_from=state))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_needs_images():
    teacher = tiny_teacher()
    student = GENIEM().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        GENIEM().quantize(student, teacher, None, context())


@pytest.mark.parametrize("bits", [2, 4])
def test_released_weight_quantizers_come_out(golden, bits):
    stored = golden("genie_quant_a")
    take = lambda name: torch.from_numpy(np.asarray(stored[f"wq{bits}_{name}"]))  # noqa: E731
    values = torch.from_numpy(stored["conv_w"])
    quantizer = quantized_layer_quantizer(values, bits)
    quantizer.set_parameters(*shrink_search(values, bits, 0))
    torch.testing.assert_close(quantizer.scale, take("scale"), rtol=1e-6, atol=0)
    assert torch.equal(quantizer.zero_point, take("zero"))
    rounding = SoftRounding(quantizer, values, Rounding(scale_lr=1e-4))
    torch.testing.assert_close(rounding.logits.detach(), take("bit_logit_init"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rounding(values).detach(), take("soft_init"), rtol=0, atol=1e-5)
    assert torch.equal(rounding._base, (take("x_floor") + take("zero")).clamp(0, 2**bits - 1))
    hard = (rounding.codes(values) - rounding.zero_point) * rounding.scale.detach()
    torch.testing.assert_close(hard, take("hard_init"), rtol=0, atol=1e-6)
    with torch.no_grad():
        rounding.logits.copy_(take("bit_logit"))
        rounding.scale.copy_(take("scale2"))
    torch.testing.assert_close(rectified_sigmoid(rounding.logits.detach()), take("h"), rtol=0, atol=1e-6)
    soft = rounding(values)
    (soft * take("upstream")).sum().backward()
    torch.testing.assert_close(soft.detach(), take("soft"), rtol=0, atol=1e-5)
    torch.testing.assert_close(rounding.logits.grad, take("grad_logit"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rounding.scale.grad, take("grad_scale"), rtol=1e-4, atol=1e-5)
    hard = (rounding.codes(values) - rounding.zero_point) * rounding.scale.detach()
    torch.testing.assert_close(hard, take("hard"), rtol=0, atol=1e-5)


def quantized_layer_quantizer(values, bits):
    from zsqbench.quant import WeightQuantizer

    return WeightQuantizer("w", "weight", bits, axis=0, shape=(len(values), 1, 1, 1))


@pytest.mark.parametrize("tensor", ["act", "act_signed"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mixed", ["", "_mixed"])
def test_released_step_sizes_have_these_gradients(golden, tensor, bits, mixed):
    from zsqbench.quant import fake_quantize

    stored = golden("genie_quant_a")
    take = lambda name: torch.from_numpy(stored[f"aq_{tensor}{bits}_{name}"])  # noqa: E731
    x = torch.from_numpy(stored[tensor]).clone().requires_grad_()
    scale = take("scale").reshape(()).clone().requires_grad_()
    zero_point = torch.tensor(2.0 ** (bits - 1) if x.min() < 0 else 0.0)
    output = fake_quantize(x, scale, zero_point, bits, clips_first=True)
    if mixed:
        output = select(take("rand") < 0.5, output, x)
    (output * take("upstream")).sum().backward()
    torch.testing.assert_close(output.detach(), take(f"out{mixed}"), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, take(f"grad_x{mixed}"), rtol=1e-4, atol=1e-6)
    assert scale.grad.item() == pytest.approx(take(f"grad_scale{mixed}").item(), rel=2e-4)  # summed in float32


def test_a_released_block_comes_out(golden, monkeypatch):
    stored = golden("genie_recon_a")
    take = lambda name: torch.from_numpy(np.asarray(stored[name]))  # noqa: E731
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1, bias=False))
    module.load_state_dict({"0.weight": take("w1"), "0.bias": take("b1"), "2.weight": take("w2")})
    placement = Placement(fold_bn=False, logits="float")
    scheme = parse_scheme("own/w4a4", {"own": placement})
    student = prepare(module.eval().requires_grad_(False), scheme, (4, 6, 6), Grids("affine", "symmetric"))
    for _, quantizer in activation_quantizers(student):
        quantizer.clips_first = True
    for _, layer in quantized_layers(student):
        layer.weight_quantizer.set_parameters(*shrink_search(layer.weight, 4, 0))
    whole = [node for node in student.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    assert len(find_units(student)) == 2  # the release calls this a block; a chain of layers is none here
    (unit,) = _units(student, [whole])
    _initialize_activations(unit, [take("x")])
    for (_, quantizer), name in zip(activation_quantizers(student), ("0", "2"), strict=True):
        torch.testing.assert_close(quantizer.scale.flatten(), take(f"a_scale_init_{name}").flatten(), rtol=1e-6, atol=0)

    for (_, layer), name in zip(quantized_layers(student), ("0", "2"), strict=True):
        torch.testing.assert_close(layer.weight_quantizer.scale, take(f"w_scale_init_{name}"), rtol=1e-6, atol=0)
    torch.testing.assert_close(student(take("x")), take("out_before"), rtol=0, atol=1e-5)

    size, iterations = int(stored["batch_size"]), int(stored["iters"])
    rows = iter(take("perms").view(len(stored["perms"]) * size, -1))
    numbers = iter(sorted(name for name in stored if name.startswith("rand_")))
    monkeypatch.setattr("zsqbench.quant.reconstruction.learning.draw", lambda *_: rows)
    monkeypatch.setattr("zsqbench.quant.reconstruction.learning.keep_mask", lambda *_: take(next(numbers)) < 0.5)
    stage = Stage(
        iterations, size, rounding=Rounding(1e-3, 1.0, Annealing(warmup=float(stored["annealing_warmup"])), 1e-4),
        step_sizes=StepSizes(4e-5), quantize_activations=True, source="mixed", drop=0.5, keep_better=False,
    )  # fmt: skip
    memory = Memory(torch.device("cpu"))
    caches = {name: ActivationCache.of(take(name), memory) for name in ("x", "x_q", "y")}
    (source,) = unit.inputs
    learned = {}
    harden = Learning._harden
    monkeypatch.setattr(Learning, "_harden", lambda self, soft: (learned.update(enumerate(soft)), harden(self, soft)))
    learning = Learning(
        unit=unit, stage=stage, ctx=context(), memory=memory, inputs={source: caches["x_q"]},
        plain={source: caches["x"]}, targets=dict.fromkeys(unit.targets, caches["y"]),
        layers=[layer for _, layer in unit.layers], later=[],
        curve="block", tick=lambda: None,
    )  # fmt: skip
    learning.run(set())
    for index, name in enumerate(("0", "2")):
        torch.testing.assert_close(learned[index].logits.detach(), take(f"bit_logit_final_{name}"), rtol=0, atol=1e-4)
        torch.testing.assert_close(learned[index].scale.detach(), take(f"w_scale_final_{name}"), rtol=1e-5, atol=0)
    for (_, quantizer), name in zip(activation_quantizers(student), ("0", "2"), strict=True):
        torch.testing.assert_close(
            quantizer.scale.flatten(), take(f"a_scale_final_{name}").flatten(), rtol=1e-5, atol=0
        )
    torch.testing.assert_close(student(take("x")), take("out_after"), rtol=0, atol=1e-5)
