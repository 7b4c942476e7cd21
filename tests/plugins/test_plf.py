import math
from dataclasses import replace

import pytest
import torch
from brief import parametrize_briefly
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from zsqbench_plugins.plf import PLF, feature_error, pseudo_label_losses, self_entropy

from zsqbench import CalibrationSet, ZSQBenchError
from zsqbench.quant import finalize
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 5, "range_batch_size": 4, "lr": 1e-4}


def data(labels=None):
    return CalibrationSet(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), labels)


def trained(ctx=None, images=None, **options):
    teacher, quantizer = tiny_teacher(), PLF(**{**SHORT, **options})
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    quantizer.quantize(student, teacher, images or data(), ctx or context())
    finalize(student)
    return student.state_dict()


def curves(**options):
    ctx = context()
    trained(ctx, **options)
    return {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(PLF(**SHORT), scheme, tiny_teacher())


@pytest.mark.parametrize(
    ("size", "classes", "expected"), [(32, 10, (1e-3, 0.2, 0.5, 0.3, 100)), (224, 1000, (1e-5, 0.1, 0.4, 0.5, 4000))]
)
def test_options_are_those_of_the_text(size, classes, expected):
    found = PLF().resolved(replace(tiny_teacher(), input_size=(3, size, size), classes=classes))
    assert (found.lr, found.lowest, found.highest, found.other_weight, found.feature_weight) == expected


def test_self_entropy_is_0_where_one_class_is_sure_and_1_where_none_is():
    logits = torch.tensor([[200.0, 0, 0, 0], [3, 3, 3, 3], [math.log(3), 0, -200, -200]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    torch.testing.assert_close(self_entropy(logits), torch.tensor([0.0, 1.0, expected]))


def test_reliable_images_have_the_first_class_and_others_both_by_their_probabilities():
    """Each loss is a mean over its own images."""
    expected = torch.tensor([[2.0, 0.0, -1.0], [0.0, math.log(3), -5.0], [3.0, 0.0, 0.0]])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    sure, unsure = pseudo_label_losses(logits, expected, torch.tensor([True, False, True]))
    each = functional.cross_entropy(logits, torch.tensor([0, 1, 0]), reduction="none")
    second = functional.cross_entropy(logits[1:2], torch.tensor([0]))
    torch.testing.assert_close(sure, (each[0] + each[2]) / 2)
    torch.testing.assert_close(unsure, 0.75 * each[1] + 0.25 * second)


def test_a_loss_that_no_image_has_is_0():
    logits, expected = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    assert pseudo_label_losses(logits, expected, torch.tensor([False, False]))[0] == 0
    assert pseudo_label_losses(logits, expected, torch.tensor([True, True]))[1] == 0


def test_the_error_of_features_is_a_mean_over_values_and_layers():
    ours = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 3, 1, 1)]
    theirs = [torch.full((2, 1, 2, 2), 2.0), torch.ones(2, 3, 1, 1)]
    assert feature_error(ours, theirs) == pytest.approx((4 + 1) / 2)


def test_the_threshold_falls_from_epoch_to_epoch():
    method = PLF(**{**SHORT, "epochs": 4}).resolved(tiny_teacher())
    assert [method.threshold(update) for update in (0, 2, 3, 6, 11)] == pytest.approx([0.5, 0.5, 0.425, 0.35, 0.275])
    assert curves(epochs=4)["threshold"] == pytest.approx([0.5] * 3 + [0.425] * 3 + [0.35] * 3 + [0.275] * 3)


def test_more_labels_are_reliable_with_a_higher_threshold():
    parts = [curves(lowest=each, highest=each)["reliable"][0] for each in (0.0, 0.9, 1.0)]
    assert parts[0] == 0
    assert parts[0] <= parts[1] <= parts[2] == 1


def test_the_loss_is_the_sum_of_its_parts_and_labels_of_the_set_do_not_matter():
    found = curves(label_weight=0.5)
    for loss, *parts in zip(*(found[name] for name in ("loss", "kl", "ce", "other_ce", "mse")), strict=True):
        assert loss == pytest.approx(sum(parts), rel=1e-5)
    ones, none = (trained(images=data(labels)) for labels in (torch.ones(16).long(), None))
    assert all(torch.equal(value, none[name]) for name, value in ones.items())


@parametrize_briefly(
    "part,curve,bound",
    [("reliable_weight", "ce", 1), ("other_weight", "other_ce", 0), ("feature_weight", "mse", 0)],
    1,
)
def test_each_loss_is_off_at_0(part, curve, bound):
    options = {"lowest": bound, "highest": bound}
    assert curves(**options, **{part: 0})[curve] == [0] * 6
    assert min(curves(**options)[curve]) > 0


def test_interrupted_training_ends_as_undisturbed():
    ctx = context()
    expected = trained(ctx)
    found = trained(context(resume_from=ctx.reporter.states[3]))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_threshold_that_rises_is_one_clear_line():
    with pytest.raises(ValidationError, match=r"lowest 0.6 is above highest 0.5: the threshold falls"):
        PLF(lowest=0.6, highest=0.5)
    with pytest.raises(ZSQBenchError, match=r"fills in .* lowest 0.6 is above highest 0.5"):
        PLF(lowest=0.6).resolved(tiny_teacher())


def test_a_network_without_features_is_one_clear_line():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    teacher = replace(tiny_teacher(), module=nn.Sequential(*layers).eval().requires_grad_(False))
    training = PLF(**SHORT)
    student = training.prepare(teacher, parse_scheme("hast/w4a4"))
    with pytest.raises(ZSQBenchError, match="no convolution whose features could be compared: take feature_weight: 0"):
        training.quantize(student, teacher, data(), context())
    PLF(**SHORT, feature_weight=0).quantize(student, teacher, data(), context())


def test_it_needs_a_classifier_of_two_classes():
    assert (PLF.needs_classes, PLF.least_classes) == (True, 2)
