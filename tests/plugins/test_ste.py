import pytest
import torch
from brief import parametrize_briefly
from torch.nn import functional
from zsqbench_plugins.ste import STE

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 5, "range_batch_size": 4}


def data(count=16, *, labels=True):
    rng = torch.Generator().manual_seed(0)
    return CalibrationSet(torch.randn(count, 3, 8, 8, generator=rng), torch.arange(count) % 10 if labels else None)


def quantized(images, ctx=None, **options):
    teacher, quantizer = tiny_teacher(), STE(**{**SHORT, **options})
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    quantizer.quantize(student, teacher, images, ctx or context())
    return student


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hw_strict/w8a8", "hast/w3a3", "academic/w2a4", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(STE(**SHORT), scheme, tiny_teacher())


@pytest.mark.parametrize(("preset", "lr"), [("paper", 1e-5), ("released", 1e-4)])
def test_presets_differ_in_the_learning_rate_on_cifar(preset, lr):
    assert STE(preset=preset).resolved(tiny_teacher()).lr == lr


def test_the_loss_is_cross_entropy_and_the_divergence_with_alpha():
    ctx = context()
    quantized(data(), ctx)
    curves = {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}
    for loss, kl, ce in zip(curves["loss"], curves["kl"], curves["ce"], strict=True):
        assert loss == pytest.approx(20 * kl + ce, rel=1e-5)


def test_a_student_that_computes_the_same_has_cross_entropy_only():
    ctx = context()
    teacher, quantizer = tiny_teacher(), STE(**SHORT, augment=False)
    images = data(8)
    quantizer.quantize(quantizer.prepare(teacher, parse_scheme("hast/w16a32")), teacher, images, ctx)
    curves = ctx.reporter.curves
    expected = functional.cross_entropy(teacher.module(images.images), images.labels)
    assert curves["kl"][0][1] == pytest.approx(0, abs=1e-4)
    assert curves["ce"][0][1] == pytest.approx(float(expected), rel=1e-3)


def test_without_labels_the_float_network_labels_and_a_note_says_so():
    ctx, other = context(), context()
    quantized(data(labels=False), ctx)
    quantized(data(), other, labels="teacher")
    assert ctx.reporter.curves == other.reporter.curves
    assert ctx.reporter.notes == ["labels are the float network's predictions, because the calibration set has none"]


def test_labels_that_are_asked_for_and_absent_are_one_clear_line():
    with pytest.raises(ZSQBenchError, match=r"needs labels of the calibration set, which has none: take a generator"):
        quantized(data(labels=False), labels="set")
    quantized(data(labels=False), labels="set", ce_weight=0)


def test_soft_labels_are_taken():
    soft = CalibrationSet(data().images, torch.full((16, 10), 0.1))
    ctx = context()
    quantized(soft, ctx)
    assert all(value > 2 for _, value in ctx.reporter.curves["ce"])
