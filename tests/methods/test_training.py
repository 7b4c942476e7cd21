"""What quantizers that train have in common, on the simplest of them."""

import pytest
import torch
from brief import parametrize_briefly
from networks import from_forward, same, state_of
from torch import nn
from zsqbench_plugins.ste import STE

from zsqbench import CalibrationSet, Pretrained
from zsqbench.errors import DivergedError, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import activation_quantizers, finalize, quantized_layers
from zsqbench.scheme import PLACEMENTS, Placement, parse_scheme
from zsqbench.testing import context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "lr": 0.01, "range_updates": 5, "range_batch_size": 4}


def data(count=16, *, labels=True, size=(3, 8, 8)):
    rng = torch.Generator().manual_seed(0)
    return CalibrationSet(torch.randn(count, *size, generator=rng), torch.arange(count) % 10 if labels else None)


def quantized(ctx=None, teacher=None, images=None, scheme="hast/w3a3", tensors=None, **options):
    teacher = teacher or tiny_teacher()
    quantizer = STE(**{**SHORT, **options})
    own = {
        name: Placement.model_validate(placement.model_dump() | {"tensors": tensors or {}})
        for name, placement in PLACEMENTS.items()
    }
    student = quantizer.prepare(teacher, parse_scheme(scheme, own))
    quantizer.quantize(student, teacher, images or data(), ctx or context())
    return student


def test_ranges_are_moving_averages_over_batches_of_the_set():
    images = data(4)  # one batch of all, again and again
    student = quantized(images=images, epochs=0, batch_size=4, augment=False)
    teacher = tiny_teacher().module
    highest = teacher.stem(images.images).max()  # which the first quantizer sees behind rounded weights
    _, quantizer = activation_quantizers(student)[0]
    low, high = quantizer.range()
    assert low == 0
    assert float(high) == pytest.approx(float(highest), rel=0.3)


def test_compounding_ranges_are_far_too_wide_after_a_few_batches():
    narrow, wide = (
        activation_quantizers(quantized(epochs=0, range_updates=10, range_correction=correction))[0][1].scale
        for correction in ("unbiased", "compounding")
    )
    assert wide > 20 * narrow


@pytest.mark.parametrize("augment", [True, False])
def test_images_are_cropped_and_flipped_unless_they_are_not_to_be(augment, monkeypatch):
    seen = []
    monkeypatch.setattr("zsqbench.synthesis.resized_crops", lambda images, crops: (seen.append(crops), images)[1])
    quantized(augment=augment)
    assert len(seen) == (6 + 5 if augment else 0)  # batches of updates, and of ranges
    if augment:
        areas = torch.cat([crops.height * crops.width for crops in seen])
        assert areas.min() >= 0.5 * 64 * 0.8  # sides are whole numbers
        assert any(crops.flipped.any() for crops in seen)


def test_every_image_is_seen_before_one_is_seen_again():
    seen = []

    class Noting(STE):
        def train_on(self, student, teacher, images, ctx, begin):
            def noting(engine):
                gradients = begin(engine)
                return lambda batch, labels: (seen.extend(batch[:, 0, 0, 0].tolist()), gradients(batch, labels))[1]

            super().train_on(student, teacher, images, ctx, noting)

    teacher, quantizer = tiny_teacher(), Noting(**{**SHORT, "augment": False, "range_updates": 4})
    quantizer.quantize(quantizer.prepare(teacher, parse_scheme("hast/w3a3")), teacher, data(), context())
    assert len(seen) == 48
    assert all(len(set(seen[first : first + 16])) == 16 for first in (0, 16, 32))


@pytest.mark.parametrize("updates", [2, 3, 4])
def test_resumed_in_the_middle_of_an_epoch_it_ends_as_undisturbed(updates):
    ctx = context()
    expected = quantized(ctx)
    state = next(state for state in ctx.reporter.states if state["updates"] == updates)
    found = quantized(context(resume_from=state))
    assert same(state_of(found), state_of(expected))


def test_another_seed_gives_another_student():
    assert not same(state_of(quantized(context(0))), state_of(quantized(context(1))))


def test_it_starts_from_the_result_of_another():
    start = quantized(epochs=2, lr=0.05)
    finalize(start)
    ctx = context()
    ctx.start = start
    student = quantized(ctx, lr=0.0, weight_decay=0.0)
    assert same(state_of(student), start.state_dict())
    ctx = context()
    ctx.start = start
    moved = quantized(ctx, lr=0.05)
    scales = [{path: layer.weight_quantizer.scale for path, layer in quantized_layers(each)} for each in (moved, start)]
    assert same(*scales)
    assert not same(state_of(moved), start.state_dict())


@parametrize_briefly("scheme", ["hw/w4a4", "hast/w4a4"], 1)
@pytest.mark.parametrize("options", [{"method": "hptq"}, {"method": "dfq"}, {"method": "rtn", "grid": "symmetric"}])
def test_it_starts_from_any_quantizer_in_the_network_that_that_one_prepared(options, scheme):
    teacher, methods = tiny_teacher(), load_plugins()
    first = methods.find("quantizer", options["method"]).method(**{k: v for k, v in options.items() if k != "method"})
    start = first.prepare(teacher, parse_scheme(scheme))
    first.quantize(start, teacher, data() if first.needs_images else None, context())
    finalize(start)
    ctx = context()
    ctx.start = start
    student = first.prepare(teacher, parse_scheme(scheme))
    STE(**{**SHORT, "lr": 0.0, "weight_decay": 0.0}).quantize(student, teacher, data(), ctx)
    assert same(state_of(student), start.state_dict())
    student = first.prepare(teacher, parse_scheme(scheme))
    STE(**SHORT).quantize(student, teacher, data(), ctx)
    assert not same(state_of(student), start.state_dict())


def test_what_it_logs_says_how_well_the_student_agrees():
    ctx = context()
    quantized(ctx)
    assert {"loss", "kl", "ce", "agreement", "lr"} <= ctx.reporter.curves.keys()
    assert [step for step, _ in ctx.reporter.curves["agreement"]] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= value <= 1 for _, value in ctx.reporter.curves["agreement"])


def test_it_says_that_it_keeps_epochs_and_keeps_them():
    assert not STE().keeps_epochs
    ctx = context()
    quantized(ctx, keep_every=1)
    assert STE(keep_every=1).keeps_epochs
    assert list(ctx.reporter.epochs) == [1, 2]


@pytest.mark.parametrize("count", [1, 7])
def test_a_set_that_fills_no_batch_is_one_clear_line(count):
    with pytest.raises(
        ZSQBenchError, match=rf"^{count} calibration images are fewer than one batch: give at least 8, or"
    ):
        quantized(images=data(count))


def test_one_image_will_do_where_a_batch_is_one():
    assert all(value.isfinite().all() for value in state_of(quantized(images=data(1), batch_size=1)).values())


def test_a_network_without_relu_is_one_clear_line():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10))
    teacher = Pretrained(module.eval().requires_grad_(False), (3, 8, 8), (0.0,) * 3, (1.0,) * 3, classes=10)
    with pytest.raises(ZSQBenchError, match=r"hast/w3a3 quantizes outputs of ReLU, and Sequential has no ReLU: take a"):
        quantized(teacher=teacher)
    assert quantized(teacher=teacher, scheme="hw/w3a3") is not None
    assert quantized(teacher=teacher, scheme="hast/w3a32") is not None
    with pytest.raises(ZSQBenchError, match="Sequential has no ReLU"):
        quantized(teacher=teacher, tensors={"4": {"weight": 8}})
    assert [name for name, _ in activation_quantizers(quantized(teacher=teacher, tensors={"2": 8}))] == ["2"]


def test_patterns_may_leave_all_activations_in_float():
    student = quantized(scheme="hw/w3a3", tensors={"*": {"activation": "float"}})
    assert (activation_quantizers(student), len(quantized_layers(student))) == ([], 4)


def test_a_learning_rate_that_is_too_high_is_one_clear_line():
    with pytest.raises(
        DivergedError, match=r"(is nan|is inf|is not finite) at update \d of 6, with a learning rate of 1e\+30"
    ):
        quantized(lr=1e30)


def test_a_network_that_gives_no_logits_is_one_clear_line():
    net = from_forward(lambda net, x: net.conv(net.conv(x).relu()), conv=nn.Conv2d(3, 3, 3))
    teacher = Pretrained(net, (3, 8, 8), (0.0,) * 3, (1.0,) * 3, classes=4)
    with pytest.raises(ZSQBenchError, match="labels ask for logits"):
        quantized(teacher=teacher)


def test_it_needs_images():
    teacher, quantizer = tiny_teacher(), STE(**SHORT)
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        quantizer.quantize(quantizer.prepare(teacher, parse_scheme("hast/w3a3")), teacher, None, context())
