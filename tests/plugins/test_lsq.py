import pytest
import torch
from brief import parametrize_briefly
from torch.nn import functional
from zsqbench_plugins.lsq import LSQ
from zsqbench_plugins.rtn import RTN

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import DATA_SETS
from zsqbench.quant import Grids, activation_quantizers, finalize, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher
from zsqbench.zoo.detectors import scene_detector

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_batch_size": 4}


def data(count=16, *, labels=True):
    rng = torch.Generator().manual_seed(0)
    return CalibrationSet(torch.randn(count, 3, 8, 8, generator=rng), torch.arange(count) % 10 if labels else None)


def quantized(images, ctx=None, scheme="hw/w3a3", teacher=None, **options):
    teacher, quantizer, ctx = teacher or tiny_teacher(), LSQ(**{**SHORT, **options}), ctx or context()
    ctx.scheme = parse_scheme(scheme)
    student = quantizer.prepare(teacher, ctx.scheme)
    quantizer.quantize(student, teacher, images, ctx)
    return student


def curves(ctx):
    return {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "academic/w2a4", "qdq/w8a8", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(LSQ(**SHORT), scheme, tiny_teacher())


@pytest.mark.parametrize(
    ("bits", "lr", "decay"), [(2, 0.01, 0.25e-4), (3, 0.01, 0.5e-4), (4, 0.01, 1e-4), (8, 0.001, 1e-4)]
)
def test_rate_and_decay_are_those_of_the_bits(bits, lr, decay):
    found = LSQ().resolved(DATA_SETS["imagenet"], parse_scheme(f"hw/w{bits}a{bits}"))
    assert (found.lr, found.weight_decay, found.epochs) == (lr, decay, 90)


def test_it_has_one_step_size_for_a_weight_on_symmetric_grids():
    scheme = parse_scheme("hw/w4a4")
    assert LSQ().grids_at(scheme) == Grids("symmetric", "symmetric", per_channel=False)
    assert LSQ(per_channel=True).grids_at(scheme).per_channel
    assert "grid" in LSQ().rejects(parse_scheme("pot/w8a8"))


def test_step_sizes_of_weights_and_activations_learn():
    before, after = quantized(data(), epochs=0), quantized(data(), lr=0.05)
    for of in (
        activation_quantizers,
        lambda student: [(n, each.weight_quantizer) for n, each in quantized_layers(student)],
    ):
        moved = [not torch.equal(a.scale, b.scale) for (_, a), (_, b) in zip(of(before), of(after), strict=True)]
        assert all(moved)


def test_the_loss_is_cross_entropy_and_the_divergence_at_temperature_1():
    ctx, images = context(), data(8)
    teacher = tiny_teacher()
    quantized(images, ctx, "hast/w16a32", teacher, augment=False, initial_steps="ranges", lr=0.0)
    found = curves(ctx)
    expected = functional.cross_entropy(teacher.module(images.images), images.labels)
    assert found["ce"][0] == pytest.approx(float(expected), rel=1e-3)
    assert found["kl"][0] == pytest.approx(0, abs=1e-4)
    assert found["loss"] == pytest.approx([kl + ce for kl, ce in zip(found["kl"], found["ce"], strict=True)])


@pytest.mark.slow("it builds a detector of torchvision")
def test_a_detector_learns_what_its_float_network_predicts():
    detector = scene_detector(None)
    teacher = tiny_teacher()
    teacher = type(teacher)(**(vars(teacher) | {"module": detector.module, "input_size": (3, 96, 96), "classes": None}))
    ctx, rng = context(), torch.Generator().manual_seed(0)
    images = CalibrationSet(torch.randn(8, 3, 96, 96, generator=rng))
    quantized(images, ctx, "hw/w4a4", teacher, augment=False, batch_size=8, epochs=4, lr=1e-3, optimizer="adam")
    assert curves(ctx)["kl"][-1] < 0.8 * curves(ctx)["kl"][0]
    assert "ce" not in curves(ctx)


def test_without_labels_the_float_network_labels_and_a_note_says_so():
    ctx, other = context(), context()
    quantized(data(labels=False), ctx)
    quantized(data(), other, labels="teacher")
    assert ctx.reporter.curves == other.reporter.curves
    assert ctx.reporter.notes == ["labels are the float network's predictions, because the calibration set has none"]
    with pytest.raises(ZSQBenchError, match="labels of the calibration set, which has none: take a generator"):
        quantized(data(labels=False), labels="set")


def test_it_goes_on_from_another_quantizers_grids_whatever_their_kind():
    teacher, scheme, ctx = tiny_teacher(), parse_scheme("hw/w4a4"), context()
    rtn = RTN()
    started, student = rtn.prepare(teacher, scheme), rtn.prepare(teacher, scheme)
    rtn.quantize(started, teacher, data(), context(scheme=scheme))
    before = {name: (each.scale.clone(), each.zero_point.clone()) for name, each in activation_quantizers(started)}
    finalize(started)
    ctx.start, ctx.scheme = started, scheme
    LSQ(**SHORT, lr=0.01).quantize(student, teacher, data(), ctx)
    for name, quantizer in activation_quantizers(student):
        assert quantizer.grid == "affine"
        assert not torch.equal(quantizer.scale, before[name][0])
        assert torch.equal(quantizer.zero_point, before[name][1])
    assert all(layer.weight_quantizer.scale.dim() == layer.weight.dim() for _, layer in quantized_layers(student))
