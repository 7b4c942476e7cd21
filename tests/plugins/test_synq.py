import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.nn import functional
from updates import Watched, close
from zsqbench_plugins.synq import (
    LowPass,
    channel_weights,
    class_activation,
    class_score,
    easy_cross_entropy,
    is_easy,
    lowpass_gains,
    map_gap,
)

from zsqbench import CalibrationSet, Pretrained, ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    FineTuning,
    Schedule,
    activation_quantizers,
    block_outputs,
    calibrate_weights,
    capture,
    cut_behind,
    finalize,
    from_features,
    kl_divergence,
    last_map,
    split_features,
    with_features,
)
from zsqbench.quant.training import finetuning
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import difficulty
from zsqbench.testing import check_quantizer, context, tiny_teacher

SynQ, HAST = (load_plugins().find("quantizer", name).method for name in ("synq", "hast"))
SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 5, "range_batch_size": 4}
OFF = {"lowpass": 0, "cam_weight": 0, "ce_weight": 0}


@pytest.fixture
def vectors(golden):
    return lambda name: {key: torch.from_numpy(np.asarray(value)) for key, value in golden(name).items()}


def data(count=16, *, labels=True):
    """Images of which the tiny network finds some easy."""
    pixels = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return CalibrationSet(pixels, tiny_teacher().module(pixels).argmax(1) if labels else None)


def trained(method=SynQ, ctx=None, images=None, scheme="hast/w3a3", **options):
    teacher, quantizer = tiny_teacher(), method(**{**SHORT, "easy_below": 1, **options} if method is SynQ else options)
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, images or data(), ctx or context())
    finalize(student)
    return student


def curves(**options):
    ctx = context()
    trained(ctx=ctx, **options)
    return {name: points[0][1] for name, points in ctx.reporter.curves.items()}


def same(ours, theirs):
    found, expected = ours.state_dict(), theirs.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(SynQ(**SHORT), scheme, tiny_teacher())


@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
@parametrize_briefly("promotion", ["kl_fa", "none", "kl"], 2)
def test_with_all_three_parts_off_it_is_hast_bit_for_bit(scheme, promotion):
    training = {**SHORT, "epochs": 3, "lr": 1e-4, "milestones": [1], "promotion": promotion}
    ours, theirs = context(), context()
    student = trained(SynQ, ours, scheme=scheme, **training, **OFF)
    assert same(student, trained(HAST, theirs, scheme=scheme, **training))
    assert ours.reporter.curves == theirs.reporter.curves
    assert not same(student, trained(HAST, scheme=scheme, **{**training, "epochs": 1}))  # they do learn


@pytest.mark.parametrize("part", OFF)
def test_each_part_changes_the_result_by_itself(part):
    options = {**OFF, "lr": 1e-3}
    given = {"lowpass": 0.25, "cam_weight": 1e4, "ce_weight": 10.0}[part]
    assert not same(trained(**options), trained(**{**options, part: given}))


def test_the_losses_are_hasts_and_those_of_the_parts():
    found = curves(ce_weight=2.0)
    parts = ("kl", "fa", "ce", "cam", "promoted_kl", "promoted_fa", "promoted_ce")
    assert found["loss"] == pytest.approx(sum(found[name] for name in parts), rel=1e-5)
    assert min(found[name] for name in ("ce", "cam", "promoted_ce")) > 0


def test_without_promotion_grad_cam_and_labels_count_all_the_same():
    found = curves(promotion="none")
    assert "promoted_kl" not in found
    assert found["loss"] == pytest.approx(found["kl"] + found["fa"] + found["ce"] + found["cam"], rel=1e-5)
    assert found["cam"] == pytest.approx(curves()["cam"], rel=1e-5)


def test_features_of_harder_images_are_aligned_unless_it_is_said():
    assert curves(align_promoted=True)["promoted_fa"] > 0
    found = curves(align_promoted=False)
    assert (found["fa"] > 0, found["promoted_fa"]) == (True, 0)


@pytest.mark.parametrize(
    ("size", "classes", "paper", "released"),
    [
        (32, 10, (20, 0.7, True), (80, 0.5, False)),
        (32, 100, (20, 0.5, True), (80, 0.5, False)),
        (224, 1000, (40, 0.5, True), (80, 0.5, True)),
    ],
)
def test_presets_go_by_data_set(size, classes, paper, released):
    teacher = replace(tiny_teacher(), input_size=(3, size, size), classes=classes)
    for preset, expected in (("paper", paper), ("released", released)):
        found = SynQ(preset=preset).resolved(teacher)
        assert (found.lowpass * size, found.easy_below, found.align_promoted) == pytest.approx(expected)


def test_interrupted_training_ends_as_undisturbed():
    ctx = context()
    expected = trained(ctx=ctx)
    assert same(expected, trained(ctx=context(resume_from=ctx.reporter.states[2])))


def test_without_labels_the_float_network_labels_and_a_note_says_so():
    ctx, other = context(), context()
    trained(ctx=ctx, images=data(labels=False))
    trained(ctx=other, images=data())
    assert "labels are the float network's predictions, because the calibration set has none" in ctx.reporter.notes
    assert ctx.reporter.curves["agreement"] == other.reporter.curves["agreement"]


def test_soft_labels_are_taken():
    images = data()
    hard = curves(images=images)
    soft = CalibrationSet(images.images, functional.one_hot(images.labels, 10).float())
    assert curves(images=soft)["ce"] == pytest.approx(hard["ce"], rel=1e-4)


def test_the_network_has_no_hooks_afterwards_and_a_note_names_the_map():
    teacher, ctx = tiny_teacher(), context()
    quantizer = SynQ(**SHORT)
    student = quantizer.prepare(teacher, parse_scheme("hast/w4a4"))
    quantizer.quantize(student, teacher, data(), ctx)
    parts = [*student.modules(), *teacher.module.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)
    assert "Grad-CAM maps are of depthwise.0" in ctx.reporter.notes


@pytest.mark.slow("it traces all that is compiled, which takes ten seconds")
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of what it does itself while it traces
def test_updates_are_compiled_in_whole_graphs_that_later_batches_use_again(monkeypatch):
    from torch._dynamo.utils import counters

    counters.clear()
    graphs = []
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr("zsqbench.methods.context._require_compiler", lambda: None)
    ctx = context()
    ctx.settings = Settings(compile=True)
    ctx.progress = lambda *_: graphs.append(counters["stats"]["unique_graphs"])
    trained(ctx=ctx, lr=1e-4)
    assert graphs[0] > 5
    assert len(set(graphs)) == 1
    plain = context()
    trained(ctx=plain, lr=1e-4)
    for name, points in plain.reporter.curves.items():
        assert ctx.reporter.curves[name] == [(step, pytest.approx(value, rel=1e-3, abs=1e-3)) for step, value in points]


@pytest.mark.parametrize("side", [4, 31])
def test_images_smaller_than_the_filter_are_one_clear_line(side):
    teacher = replace(tiny_teacher(), input_size=(3, side, 2 * side))
    part = 0.9 / side
    with pytest.raises(
        ZSQBenchError, match=rf"of images of {side} pixels is a filter of 0.9 frequencies, which leaves"
    ):
        SynQ(lowpass=part).resolved(teacher)
    assert SynQ(lowpass=0).resolved(teacher).lowpass == 0


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 10, 1))


def test_a_network_without_a_map_is_one_clear_line():
    module = nn.Sequential(*FLAT, nn.Flatten()).eval().requires_grad_(False)
    teacher = replace(tiny_teacher(), module=module)
    training = SynQ(**SHORT, alignment="none")
    student = training.prepare(teacher, parse_scheme("hast/w4a4"))
    with pytest.raises(ZSQBenchError, match="Grad-CAM needs a convolution whose map has more than one position"):
        training.quantize(student, teacher, data(), context())
    assert (training.needs_map, SynQ(cam_weight=0).needs_map) == (True, False)
    SynQ(**SHORT, alignment="none", cam_weight=0, ce_weight=0, lowpass=0.5).quantize(
        student, teacher, data(), context()
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_filter_is_that_of_the_release(vectors, number):
    stored = vectors("synq_lowpass_a")
    images = stored[f"images_{number}"]
    for name, expected in stored.items():
        if not name.startswith(f"filtered_{number}_"):
            continue
        cutoff, precise = int(name.split("_")[2].removeprefix("d")), name.endswith("f64")
        found = LowPass(cutoff / min(images.shape[2:]))(images.double() if precise else images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if precise else 2e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5)])
def test_the_filter_is_a_gaussian_of_frequencies(size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    rows, columns = (torch.fft.fftfreq(each, 1 / each).double() for each in size)
    gains = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 2.0**2))
    expected = torch.fft.ifft2(torch.fft.fft2(images) * gains).real
    torch.testing.assert_close(LowPass(2.0 / min(size))(images), expected)
    assert torch.equal(lowpass_gains(*size, 2.0)[0, 0], torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(LowPass(1e9)(images), images)  # no frequency is far


def test_the_filter_is_made_once_for_each_size():
    lowpass = LowPass(0.25)
    lowpass(torch.zeros(2, 3, 8, 8))
    (gains,) = lowpass._gains.values()
    lowpass(torch.zeros(5, 3, 8, 8))
    assert [*lowpass._gains.values()] == [gains]
    lowpass(torch.zeros(5, 3, 8, 9))
    assert len(lowpass._gains) == 2


class Golden(nn.Module):
    """The network of synq_gradcam_a."""

    def __init__(self, stored, who):
        super().__init__()
        weights = {name.removeprefix(f"{who}."): value for name, value in stored.items() if name.startswith(f"{who}.")}
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, stride=int(stored["stride_conv2"]))
        self.fc = nn.Linear(6, 7)
        self.load_state_dict(weights)

    def forward(self, images):
        return self.fc(self.conv2(self.conv1(images).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("kind", "suffix"), [(torch.float64, "_f64"), (torch.float32, "")])
def test_maps_and_the_gradient_of_their_gap_are_those_of_the_release(vectors, kind, suffix):
    stored = vectors("synq_gradcam_a")
    found = {}
    for who in ("teacher", "student"):
        network = capture(Golden(stored, who), (3, 16, 16)).to(kind)
        network.requires_grad_(who == "student")
        node = last_map(network)
        assert str(node.target) == "conv2"
        network = with_features(network, cut_behind(network, node))
        logits, values = network(stored["images"].to(kind))
        assert torch.equal(logits.argmax(1), stored[f"{who}_argmax"])
        for each, what in ((logits, "logits"), (values[0], "act")):
            torch.testing.assert_close(each.detach(), stored[f"{who}_{what}{suffix}"], rtol=1e-5, atol=1e-6)
        weights = channel_weights(class_score(from_features(network)), values)
        gradient = stored[f"{who}_act_grad_plus_eps{suffix}"]  # the release adds 1e-10 to each
        torch.testing.assert_close(weights.to(kind), gradient.mean((2, 3)).clamp_min(1e-10), rtol=1e-5, atol=1e-9)
        found[who] = network, values[0], weights.to(kind)
    maps = {who: class_activation(values, weights, 16, 16) for who, (_, values, weights) in found.items()}
    tolerance = 1e-6 if suffix else 2e-6
    for who, each in maps.items():
        torch.testing.assert_close(each[:, None].to(kind), stored[f"{who}_map{suffix}"], rtol=0, atol=tolerance)
    gap = map_gap(found["teacher"][1], found["student"][1], found["teacher"][2], found["student"][2], 16, 16)
    assert float(gap.detach()) == pytest.approx(float(stored[f"loss_cam{suffix}"]), rel=1e-5)
    gap.backward()
    for path in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        expected = stored[f"grad_student.{path}{suffix}"]
        gradient = dict(found["student"][0].named_parameters())[path].grad
        assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def test_a_map_is_what_its_channels_say_from_0_to_1():
    maps = torch.tensor([[[[1.0, 0], [0, 0]], [[0, 0], [0, 3.0]]]])
    found = class_activation(maps, torch.tensor([[2.0, 1.0]]), 2, 2)
    torch.testing.assert_close(found, torch.tensor([[[2 / 3, 0], [0, 1]]]))
    enlarged = class_activation(maps, torch.tensor([[2.0, 1.0]]), 5, 7)
    raw = functional.interpolate(torch.tensor([[[[2.0, 0], [0, 3.0]]]]), (5, 7), mode="bilinear")[0]
    torch.testing.assert_close(enlarged, (raw - raw.amin()) / (raw.amax() - raw.amin()))
    torch.testing.assert_close(class_activation(maps, torch.tensor([[200.0, 100.0]]), 2, 2), found)
    assert map_gap(maps, maps, torch.ones(1, 2), torch.ones(1, 2), 4, 4) == 0


def test_a_channel_counts_by_the_gradient_of_the_networks_own_class():
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(2, 5)
    found = channel_weights(class_score(lambda values: layer(values.mean((2, 3)))), [maps])
    own = layer(maps.mean((2, 3))).argmax(1)
    torch.testing.assert_close(found, (layer.weight[own] / 16).clamp_min(1e-10).detach())
    assert layer.weight.grad is None


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7])
def test_what_is_easy_and_its_loss_are_those_of_the_release(vectors, tau):
    stored = vectors("synq_selce_a")
    expected, logits, labels = stored["teacher_logits"], stored["student_logits"].requires_grad_(), stored["labels"]
    torch.testing.assert_close(difficulty(expected, labels), stored["difficulty"])
    easy = is_easy(expected, labels, tau)
    assert torch.equal(easy, stored[f"mask_tau{tau}"].float())
    loss = easy_cross_entropy(logits, labels, easy)
    constant = (1 - easy).mean() * np.log(10)  # what the release adds for those that it excludes
    assert float((loss + constant).detach()) == pytest.approx(float(stored[f"loss_CE_tau{tau}"]), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, stored[f"grad_CE_tau{tau}"], rtol=1e-5, atol=1e-7)


def test_distillation_is_that_of_the_release(vectors):
    stored = vectors("synq_selce_a")
    alpha, temperature = int(stored["alpha"]), int(stored["temperature"])
    training = SynQ().resolved(tiny_teacher())
    assert (training.alpha, training.temperature) == (alpha, temperature)
    logits = stored["student_logits"].requires_grad_()
    loss = alpha * kl_divergence(logits, stored["teacher_logits"], temperature)
    loss.backward()
    # the release adds 1e-7 to log-probabilities: 1e-5 of this loss
    assert float(loss.detach()) == pytest.approx(float(stored["loss_KL"]), rel=1e-4)
    torch.testing.assert_close(logits.grad, stored["grad_KL"], rtol=1e-4, atol=1e-5)


def test_below_1_all_are_easy_and_below_0_none(vectors):
    stored = vectors("synq_selce_a")
    logits, labels = 100 * stored["teacher_logits"], stored["labels"]
    assert easy_cross_entropy(stored["student_logits"], labels, is_easy(logits, labels, 1)) == pytest.approx(
        float(stored["loss_CE_no_mask"]), rel=1e-5
    )
    assert not is_easy(logits, labels, 0).any()


class Released(torch.autograd.Function):
    """An activation on its grid by the operations of the release, whose last digits decide some codes."""

    @staticmethod
    def forward(_, x, low, high, bits):
        half = 2 ** (bits - 1)
        scale = (2**bits - 1) / torch.clamp(high - low, min=1e-8)
        zero = torch.round(scale * low) + half
        return (torch.clamp(torch.round(scale * x - zero), -half, half - 1) + zero) / scale

    @staticmethod
    def backward(_, gradient):
        return gradient, None, None, None


def check_maps(update, stored, aligned, parameters):
    """Compare Grad-CAM's classes, maps and gradients of an update's two networks with those of the release."""
    networks = {
        "teacher": (update.network, update._score_theirs),
        "student": (update.engine.network, update._score_ours),
    }
    values, weights = [], []
    for who, (network, score) in networks.items():
        logits, features = split_features(network(stored["images_filtered"]))
        assert torch.equal(logits.argmax(1), stored[f"{who}_cam_class"])
        values.append(features[aligned])
        weights.append(channel_weights(score, features[aligned:]))
        maps = class_activation(values[-1].detach(), weights[-1], 32, 32)
        torch.testing.assert_close(maps[:, None], stored[f"{who}_map"], rtol=0, atol=2e-6)
    gap = map_gap(values[0].detach(), values[1], *weights, 32, 32)
    paths = {"conv1.weight": "first_conv_w", "layer3.2.conv2.weight": "last_conv_w"}
    for gradient, name in zip(
        torch.autograd.grad(gap, [parameters[path] for path in paths]), paths.values(), strict=True
    ):
        expected = stored[f"grad_CAM_only_{name}"]
        close(gradient[: len(expected)], expected, 1e-4)


def test_the_released_update_comes_out_with_all_its_gradients(vectors, resnet20, monkeypatch):
    stored = vectors("synq_update_resnet20_a")
    teacher = Pretrained(resnet20, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=10)
    weights = {"cam_weight": float(stored["lambda_cam"]), "ce_weight": float(stored["lambda_ce"])}
    training = SynQ(preset="released", **weights, lowpass=float(stored["d_zero"]) / 32).resolved(teacher)
    assert (training.alpha, training.temperature) == (stored["alpha"], stored["temperature"])
    assert (training.alignment_weight, training.epsilon) == (stored["lam"], stored["eps"])
    assert (training.easy_below, training.promoted_weight) == (stored["tau_selce"], stored["lambda_pert"])
    assert training.align_promoted == stored["fa_on_perturbed"]
    torch.testing.assert_close(
        LowPass(training.lowpass)(stored["images"]), stored["images_filtered"], rtol=0, atol=2e-6
    )
    training = training.model_copy(update={"lowpass": 0.0})  # its last digit, too, decides some codes
    student = training.prepare(teacher, parse_scheme("hast/w4a4"))
    network = copy.deepcopy(student)
    calibrate_weights(student, "minmax")
    ranges = {}
    for (_, quantizer), (low, high) in zip(activation_quantizers(student), stored["act_ranges"], strict=True):
        quantizer.set_range(low, high)
        ranges[float(quantizer.scale)] = low, high
    monkeypatch.setattr(
        finetuning,
        "rectify_and_quantize",
        lambda x, scale, _, bits, __: Released.apply(x.relu(), *ranges[float(scale)], bits),
    )
    ctx, aligned = context(), block_outputs(network)
    nodes = [*aligned, *training.further_features(network, ctx)]
    with FineTuning(student, ctx, Schedule(1, 1, 0.0), {}, features=[node.name for node in nodes]) as engine:
        update = training.update(engine, with_features(network, nodes), ctx, len(aligned))
        parameters = dict(zip((name for name, _ in student.named_parameters()), engine.parameters, strict=True))
        check_maps(update, stored, len(aligned), parameters)
        watched = Watched(update)
        found = {
            name: float(value.detach()) for name, value in update(stored["images_filtered"], stored["labels"]).items()
        }
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
    constant = float((1 - stored["mask"].float()).mean()) * np.log(10)
    expected = {
        "kl": float(stored["loss_KL"]),
        "fa": float(stored["loss_FA"]),
        "ce": 0.5 * (float(stored["loss_CE"]) - constant),
        "cam": 50 * float(stored["loss_CAM"]),
        "promoted_kl": float(stored["loss_KL_perturbed"]),
        "promoted_fa": 0.0,
        "promoted_ce": 0.5 * (float(stored["loss_CE_perturbed"]) - constant),
        "loss": float(stored["loss_total"]) - constant,  # half of it, twice
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    promoted = float(stored["loss_S_perturbed"]) - constant / 2
    assert found["promoted_kl"] + found["promoted_ce"] == pytest.approx(promoted, rel=1e-5)
    torch.testing.assert_close(difficulty(watched.returned[0][0].detach(), stored["labels"]), stored["difficulty"])
    watched.check(stored, (0, 4, 8))
    paths = {
        "conv1.weight": "first_conv_w",
        "layer2.0.conv1.weight": "stage2_unit0_conv1_w",
        "layer3.2.conv2.weight": "last_conv_w",
        "layer3.2.bn2.weight": "last_bn_w",
        "linear.weight": "linear_w",
        "linear.bias": "linear_b",
        "bn1.weight": "bn1_w",
    }
    for path, name in paths.items():
        gradient = stored[f"grad_{name}"]
        assert (gradients[path][: len(gradient)] - gradient).norm() <= 1e-4 * gradient.norm()
