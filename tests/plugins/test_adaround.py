import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins.adaround import AdaRound

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import activation_quantizers, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"iterations": 20, "batch_size": 8, "rounding_lr": 0.02}


def quantized(quantizer, scheme="hw/w3a4", ctx=None):
    teacher = tiny_teacher()
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx or context())
    return student


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["pot/w4a8", "hast/w4a4", "hw_strict/w3a8", "academic/w4a4", "hw/w2a4", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(AdaRound(**SHORT), scheme, tiny_teacher())


def test_every_weight_is_within_a_step_of_its_float_value():
    for _, layer in quantized_layers(quantized(AdaRound(**SHORT))):
        grid = layer.weight_quantizer
        low, high = grid.range()
        clipped = layer.weight.clamp(low, high)
        assert ((layer.quantized_weight() - clipped).abs() <= grid.scale * (1 + 1e-5)).all()


def test_some_weights_are_not_rounded_to_nearest():
    student, nearest = quantized(AdaRound(**SHORT)), quantized(AdaRound(iterations=0, batch_size=8))
    pairs = zip(quantized_layers(student), quantized_layers(nearest), strict=True)
    assert any(not torch.equal(a.quantized_weight(), b.quantized_weight()) for (_, a), (_, b) in pairs)


def test_each_layer_is_a_unit_of_its_own_and_never_worse_than_nearest():
    ctx = context()
    student = quantized(AdaRound(**SHORT), ctx=ctx)
    found = {name: points for name, points in ctx.reporter.curves.items() if name.startswith("reconstruction/weights/")}
    assert len(found) == len(quantized_layers(student))
    assert all(points[-1][1] <= points[0][1] for points in found.values())


def test_activations_are_calibrated_with_rounded_weights():
    student = quantized(AdaRound(**SHORT, activation_range="minmax"), "hw/w2a8")
    name, logits = activation_quantizers(student)[-1]
    assert name
    images = torch.randn(16, *tiny_teacher().input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits.enabled = False
        seen = student(images)
    assert logits.range()[1].item() == pytest.approx(seen.max().item(), rel=0.02)


def test_presets_differ_in_iterations_annealing_and_draws():
    paper, released = (AdaRound(preset=preset).resolved(tiny_teacher()) for preset in ("paper", "released"))
    assert [paper.iterations, released.iterations] == [10_000, 20_000]
    assert [paper.annealing, released.annealing] == ["cosine", "linear"]
    assert [paper.draws, released.draws] == ["permutation", "epoch"]
    assert AdaRound(preset="paper", iterations=3).resolved(tiny_teacher()).iterations == 3


def test_a_grid_that_the_scheme_does_not_allow_is_rejected():
    assert "symmetric" in AdaRound(grid="symmetric").rejects(parse_scheme("pot/w8a8"))
    assert AdaRound().rejects(parse_scheme("pot/w8a8")) is None


def test_it_needs_images():
    teacher = tiny_teacher()
    student = AdaRound().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        AdaRound().quantize(student, teacher, None, context())


@pytest.mark.parametrize(("iterations", "read"), [(2, 16), (0, 12)])
def test_what_it_does_not_learn_on_is_read_as_far_as_ranges_are_searched(iterations, read):
    ctx = context()
    quantized(AdaRound(iterations=iterations, batch_size=8, search_images=12), ctx=ctx)
    assert ctx.read == read


def test_memory_for_caches_is_no_part_of_its_identity():
    assert {"device_memory", "host_memory"} <= AdaRound.execution_options
    assert "batch_size" not in AdaRound.execution_options
