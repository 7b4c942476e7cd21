import itertools
import random
from unittest import mock

import pytest
import torch
from brief import parametrize_briefly
from torch import nn

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.execution.reporter import FLAT
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_minmax,
    calibrate_weights,
    quantized_layers,
)
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, observation, quantizers, shared
from zsqbench.testing.networks import tiny_teachers
from zsqbench.testing.quantizers import examine_quantizer
from zsqbench.testing.reading import READ
from zsqbench.testing.report import Report


class Small(nn.Module):
    """The least that the checks need: a convolution with BN, two activations and a classifier."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), norm, nn.ReLU(), nn.ReLU6())
        self.classifier = nn.Linear(2, 10)

    def forward(self, images):
        return self.classifier(self.stem(images).mean((2, 3)))


def small_teacher(norm=nn.BatchNorm2d):
    """Tracing a network costs most of a check; the tiny networks of zsqbench.testing take three times as long."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small(norm(2))
    return zsqbench.Pretrained(
        module.eval().requires_grad_(False), (3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10
    )


PLAIN = {"plain BN": small_teacher()}
ON_SMALL = {
    "tiny_teachers": lambda: PLAIN,
    "tiny_teacher": small_teacher,
    "tiny_teacher_without_bn": lambda: small_teacher(nn.Identity),
}


def quantizer(act=None, after=None, **flags):
    """Round to nearest, and something besides before or after it."""

    class Broken(zsqbench.Quantizer):
        name = "broken"

        def quantize(self, student, teacher, data, ctx):
            if act is not None:
                act(teacher, data)
            calibrate_weights(student, "minmax")
            calibrate_activations_minmax(student, [data.images])
            if after is not None:
                after(student)

    for name, value in flags.items():
        setattr(Broken, name, value)
    return Broken()


def failures(broken, teachers=PLAIN, scheme="hw/w4a4", networks=lambda: PLAIN):
    """The checks that fail, and why; without teachers all checks are made, on one small network where not on these."""
    report = Report(broken)
    with mock.patch.multiple(quantizers, **ON_SMALL | {"tiny_teachers": networks}):
        examine_quantizer(report, parse_scheme(scheme), teachers)
    return {finding.check: finding.reason for finding in report.summary() if finding.outcome == "FAILED"}


@parametrize_briefly("scheme", ["hw/w4a4", "academic/w4a4"], 1)
@pytest.mark.usefixtures("measured")
def test_a_sound_quantizer_passes(scheme):
    assert failures(quantizer(), None, scheme, tiny_teachers) == {}


@pytest.mark.parametrize(
    ("act", "check"),
    [
        (lambda teacher, _: teacher.module.classifier.weight.data.add_(1), observation.TEACHER),
        (lambda *_: random.random(), observation.GLOBAL),  # noqa: S311
    ],
)
def test_what_it_leaves_changed_is_found(act, check):
    assert failures(quantizer(act)).keys() == {check}


def test_two_networks_for_one_seed_are_found():
    counter = itertools.count()

    def after(student):
        for _, layer in quantized_layers(student):
            layer.bias = nn.Parameter(layer.bias + next(counter), requires_grad=False)

    assert failures(quantizer(after=after)) == {
        quantizers.SAME: "gave two different networks for one seed (on plain BN, hw/w4a4)"
    }


def test_an_artifact_of_changing_structure_is_found():
    counter = itertools.count()

    def after(student):
        student.register_buffer(f"more{next(counter)}", torch.zeros(1))

    assert "changing structure" in failures(quantizer(after=after))[quantizers.SAME]


def test_an_artifact_that_cannot_be_loaded_is_found():
    def after(student):
        student.register_buffer("more", torch.zeros(1))

    reason = failures(quantizer(after=after))[quantizers.ARTIFACT]
    assert reason.startswith(
        "has an artifact that does not load and run (its structure was changed in quantize: tensor 'more' is of shape "
        "(1,), and was not there; do it in prepare, which is called again): RuntimeError: "
    )


def test_an_artifact_that_leaves_something_out_is_found():
    def after(student):
        student.register_forward_hook(lambda _, __, outputs: outputs + 1)

    assert failures(quantizer(after=after))[quantizers.ARTIFACT] == (
        "has an artifact that gives other outputs when it is loaded (its structure was changed in quantize: the "
        "network is Small with forward_hooks, and was Small; do it in prepare, which is called again) "
        "(on plain BN, hw/w4a4)"
    )


def test_outputs_that_differ_for_another_reason_come_without_advice_on_structure():
    def after(student):
        for module in student.modules():
            if isinstance(module, nn.ReLU6):
                module.max_val = 0.5

    assert failures(quantizer(after=after)) == {
        quantizers.ARTIFACT: "has an artifact that gives other outputs when it is loaded (on plain BN, hw/w4a4)"
    }


def test_a_module_that_is_replaced_in_quantize_is_found_and_in_prepare_it_is_sound():
    def replace(student):
        for path, module in list(student.named_modules()):
            if isinstance(module, nn.ReLU):
                student.set_submodule(path, nn.Hardtanh(0, 1))

    class Prepares(zsqbench.Quantizer):
        name = "prepares"

        def prepare(self, teacher, scheme):
            student = super().prepare(teacher, scheme)
            replace(student)
            return student

        def quantize(self, student, teacher, data, ctx):
            quantizer().quantize(student, teacher, data, ctx)

    assert failures(Prepares()) == {}
    found = failures(quantizer(after=replace))
    assert found.keys() == {quantizers.ARTIFACT}
    assert "is Hardtanh, and was ReLU; do it in prepare" in found[quantizers.ARTIFACT]


def test_outputs_that_are_not_finite_are_found():
    def after(student):
        for _, layer in quantized_layers(student):
            layer.bias = nn.Parameter(layer.bias * torch.nan, requires_grad=False)

    assert quantizers.OUTPUTS in failures(quantizer(after=after))


def test_a_quantizer_that_forgets_a_tensor_is_found():
    class Forgetful(zsqbench.Quantizer):
        name = "forgetful"

        def quantize(self, student, teacher, data, ctx):
            calibrate_weights(student, "minmax")

    assert "works on plain BN, hw/w4a4" in failures(Forgetful())


def test_a_network_that_it_does_not_work_on_is_found():
    def act(teacher, _):
        assert not hasattr(teacher.module, "join")

    found = failures(quantizer(act), None, networks=tiny_teachers)
    assert found.keys() == {"works on residual, concat and SiLU, hw/w4a4"}


def without_bn(teacher, _):
    if any(isinstance(part, nn.Identity) for part in teacher.module.modules()):
        raise ZSQBenchError("the network has no BN")


def test_needing_bn_has_to_be_declared():
    assert failures(quantizer(without_bn), None).keys() == {shared.WITHOUT_BN}
    assert failures(quantizer(without_bn, needs_bn=True), None) == {}


def test_stumbling_over_labels_is_found():
    def act(_, data):
        assert data.labels is None

    assert failures(quantizer(act), None).keys() == {quantizers.LABELS}


def test_needing_labels_has_to_be_declared():
    def act(_, data):
        assert data.labels is not None

    assert "works on plain BN, hw/w4a4" in failures(quantizer(act))
    assert failures(quantizer(act, needs_labels=True), None) == {}


def test_a_quantizer_that_bfloat16_breaks_is_found():
    def act(*_):
        assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32

    assert failures(quantizer(act), None).keys() == {shared.BF16}


@pytest.mark.usefixtures("measured")
def test_memory_that_grows_with_the_square_of_the_images_is_found():
    def act(_, data):
        (data.images[:, None] - data.images[None]).square().sum()

    assert failures(quantizer(act), None).keys() == {shared.MEMORY}


@pytest.mark.usefixtures("measured")
def test_memory_is_not_checked_where_it_takes_no_other_number_of_images():
    def act(_, data):
        if len(data) != quantizers.IMAGES:
            raise ZSQBenchError("give 32 images")

    report = Report(quantizer(act))
    with mock.patch.multiple(quantizers, **ON_SMALL):
        examine_quantizer(report, parse_scheme("hw/w4a4"))
    assert [finding.outcome for finding in report.summary() if finding.check == shared.MEMORY] == ["not checked"]


@pytest.mark.usefixtures("measured")
def test_stumbling_over_another_number_of_images_is_found():
    def act(_, data):
        assert len(data) == quantizers.IMAGES

    assert failures(quantizer(act), None).keys() == {READ, shared.MEMORY}
    with pytest.raises(AssertionError, match="assert"):
        check_quantizer(quantizer(act))


def test_a_quantizer_that_reads_no_images_is_handed_none():
    class DataFree(zsqbench.Quantizer):
        name = "free"
        needs_images = False

        def quantize(self, student, teacher, data, ctx):
            assert data is None
            calibrate_weights(student, "minmax")
            calibrate_activations_minmax(student, [torch.zeros(1, *teacher.input_size)])

    assert failures(DataFree(), None) == {}


def training(keep, updates=4):
    """Round to nearest behind a few updates of weights, with checkpoints of what `keep` makes of the state."""

    class Training(zsqbench.Quantizer):
        name = "training"

        def quantize(self, student, teacher, data, ctx):
            layers = [layer for _, layer in quantized_layers(student)]
            state = ctx.resume() or {"done": 0}
            for number, layer in enumerate(layers):
                layer.weight = nn.Parameter(state.get(f"weight.{number}", layer.weight), requires_grad=False)
            for done in range(state["done"], updates):
                for layer in layers:
                    layer.weight += 0.1 * ctx.randn(*layer.weight.shape)
                weights = {f"weight.{number}": layer.weight for number, layer in enumerate(layers)}
                ctx.checkpoint(keep({"done": done + 1, **weights}))
            quantizer().quantize(student, teacher, data, ctx)

    return Training()


def test_a_quantizer_that_goes_on_from_checkpoints_passes():
    assert failures(training(lambda state: state), None) == {}


def test_a_quantizer_whose_checkpoint_leads_elsewhere_is_found():
    found = failures(training(lambda state: {**state, "done": state["done"] - 1}), None)
    assert found == {
        quantizers.CHECKPOINTS: "gave something else when resumed from a checkpoint (on plain BN, hw/w4a4)"
    }


def test_a_nested_checkpoint_of_a_quantizer_is_found_with_its_place_and_the_rule():
    found = failures(training(lambda state: {"training": state}), None)
    assert found == {
        quantizers.CHECKPOINTS: "offered a state that ends a run: a checkpoint cannot keep "
        f"state['training']['weight.0'], a tensor: {FLAT} (on plain BN, hw/w4a4)"
    }


def test_checkpoints_of_a_quantizer_without_any_are_not_checked():
    report = Report(quantizer())
    with mock.patch.multiple(quantizers, **ON_SMALL):
        examine_quantizer(report, parse_scheme("hw/w4a4"))
    (finding,) = (finding for finding in report.summary() if finding.check == quantizers.CHECKPOINTS)
    assert finding.outcome == "not checked"


def optional(without):
    """A quantizer that calls images optional, and does `without` where it gets none."""

    class Optional(zsqbench.Quantizer):
        name = "optional"
        needs_images = "optional"

        def quantize(self, student, teacher, data, ctx):
            calibrate_weights(student, "minmax")
            images = without(teacher) if data is None else data.images
            calibrate_activations_minmax(student, [images])

    return Optional()


def test_a_quantizer_that_calls_images_optional_is_tried_with_and_without():
    assert failures(optional(lambda teacher: torch.zeros(1, *teacher.input_size)), None) == {}

    def fails(_):
        raise ZSQBenchError("there are no images")

    found = failures(optional(fails), None)
    assert found == {quantizers.NO_IMAGES: "raised there are no images (on plain BN, no images, hw/w4a4)"}


def reading(choose, **flags):
    """Round to nearest on some of the images."""

    class Reading(zsqbench.Quantizer):
        name = "reading"

        def quantize(self, student, teacher, data, ctx):
            calibrate_weights(student, "minmax")
            calibrate_activations_minmax(student, [choose(data.images, ctx)])

    for name, value in flags.items():
        setattr(Reading, name, value)
    return Reading()


def first(count, said=None):
    def choose(images, ctx):
        if said is not None:
            ctx.images_read(said)
        return images[:count]

    return choose


def full_batches(images, ctx):
    return images[: len(images) // 8 * 8]


def half_at_random(images, ctx):
    return images[torch.randperm(len(images), generator=ctx.rng)[: len(images) // 2]]


def none_of_them(images, ctx):
    ctx.images_read(0)
    return torch.ones_like(images[:1])


@pytest.mark.parametrize("choose", [first(8, said=8), half_at_random, none_of_them])
def test_a_quantizer_that_says_how_many_images_it_reads_passes(choose):
    assert failures(reading(choose), None) == {}


@parametrize_briefly(
    "choose,reason",
    [
        (first(8), "said that it read 32 of 32 images, and another one in place of the last of these changed nothing"),
        (first(8, said=9), "said that it read 9 of 32 images, and another one in place of the last of these changed"),
        (first(8, said=7), "said that it read 7 of 32 images, and others in place of the rest changed the network"),
        (first(32), "said that it read 33 of 33 images, and another one in place of the last of these changed nothing"),
        (full_batches, "said that it read 33 of 33 images, and another one in place of the last of these changed"),
        (first(8, said=40), "said that it read 40 of 32 images"),
    ],
    3,
)
def test_saying_another_number_of_images_than_are_read_is_found(choose, reason, monkeypatch):
    monkeypatch.setattr("zsqbench.testing.reading.SEEDS", 2)  # each of them changes nothing
    found = failures(reading(choose), None)
    assert (found.keys(), found[READ].startswith(reason)) == ({READ}, True)


def test_images_that_are_drawn_at_random_need_a_seed_that_counts():
    def same_half(images, ctx):
        return images[::2]

    assert "changed nothing" in failures(reading(same_half, seeded=False), None)[READ]


def test_the_strict_check_raises_with_one_sentence():
    with pytest.raises(
        AssertionError, match=r"^quantizer broken left the teacher in train mode \(on plain BN, hw/w4a4"
    ):
        check_quantizer(quantizer(lambda teacher, _: teacher.module.train()))


def test_the_strict_check_hands_on_why_an_artifact_does_not_load():
    with pytest.raises(Exception, match="more"):
        check_quantizer(quantizer(after=lambda student: student.register_buffer("more", torch.zeros(1))))


def at_qdq(move=None):
    """The checks that fail at qdq for round to nearest, with something done to the quantizer of the image."""

    def after(student):
        for _, each in activation_quantizers(student):
            if move is not None and each.role == "input":
                move(each)

    return failures(quantizer(after=after, weight_grids=("affine", "symmetric")), scheme="qdq/w4a4")


def test_a_quantizer_that_leaves_the_image_on_its_range_passes_whatever_it_sets():
    assert at_qdq() == {}
    assert at_qdq(lambda image: image.set_range(torch.tensor(0.0), torch.tensor(9.0))) == {}


def test_a_quantizer_that_moves_the_range_of_the_image_is_found():
    reason = (
        "moved the range of the image, which the scheme gives it; leave its quantizer alone (on plain BN, qdq/w4a4)"
    )
    assert at_qdq(lambda image: image.scale.mul_(2)) == {quantizers.IMAGE: reason}


def test_a_scheme_is_tried_on_the_networks_that_have_an_activation_for_it():
    report = Report(quantizer())
    assert len(quantizers.networks_at(report, parse_scheme("hast/w4a32"))) == len(tiny_teachers())
    assert report.findings == []
    found = quantizers.networks_at(report, parse_scheme("hast/w4a4"))
    assert list(found) == ["plain BN", "FrozenBN", "transposed and 1-d convolutions"]
    (finding,) = report.findings
    assert (finding.check, finding.outcome) == ("works on residual, concat and SiLU, hast/w4a4", "not checked")
