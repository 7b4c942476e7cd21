import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from brief import each_once, parametrize_briefly
from pydantic import ValidationError
from updates import Watched, close
from zsqbench_plugins.hast import (
    CENTRE_BETA,
    DEEP_WEIGHT,
    LAYERED_WEIGHT,
    SHALLOW_WEIGHT,
    STATISTICS_WEIGHT,
    centre_labels,
    deep_layers,
    layered_gap,
    pooled_moments,
)

from zsqbench import CalibrationSet, Pretrained, ZSQBenchError, synthesis
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    FineTuning,
    Schedule,
    activation_quantizers,
    block_outputs,
    calibrate_weights,
    finalize,
    with_features,
)
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import BNLoss, inception_loss
from zsqbench.testing import check_generator, check_quantizer, context, tiny_teacher

catalog = load_plugins()
ZeroQIL, HAST = (catalog.find("generator", name).method for name in ("zeroq_il", "hast"))
Training = catalog.find("quantizer", "hast").method


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.parametrize("method", [ZeroQIL, HAST])
@parametrize_briefly("crop_probability", [0.5, 0], 1)
def test_they_keep_the_contract_of_generators_also_when_interrupted(method, crop_probability):
    made = check_generator(
        method(images=5, batch_size=2, iterations=4, patience=0, crop_probability=crop_probability), tiny_teacher()
    )
    assert made.labels.shape == (5,)
    assert made.labels.max() < 10


def test_the_defaults_are_those_of_the_release():
    shared = {
        "preset": "released",
        "images": 5120,
        "batch_size": 256,
        "iterations": 1000,
        "lr": 0.5,
        "factor": 0.1,
        "patience": 50,
        "min_lr": 1e-4,
        "beta": None,
        "crop_probability": None,
        "crop_scale": None,
    }
    assert ZeroQIL().options() == shared
    assert HAST().options() == shared | {"gamma": None}


@pytest.mark.parametrize(
    ("side", "classes", "preset", "expected"),
    [
        (32, 10, "released", {"beta": 10, "gamma": 2, "crop_probability": 0, "crop_scale": 0.4}),
        (32, 100, "released", {"beta": 10, "gamma": 2, "crop_probability": 0, "crop_scale": 0.4}),
        (224, 1000, "released", {"beta": 0.1, "gamma": 0.5, "crop_probability": 0.5, "crop_scale": 0.4}),
        (32, 10, "paper", {"beta": 10, "gamma": 2, "crop_probability": 0.5, "crop_scale": 0.5}),
        (224, 10, "paper", {"beta": 0.1, "gamma": 0.5, "crop_probability": 0.5, "crop_scale": 0.5}),
    ],
)
def test_what_is_not_given_is_published_for_a_data_set_like_the_networks(side, classes, preset, expected):
    teacher = replace(tiny_teacher(), input_size=(3, side, side), classes=classes)
    assert expected.items() <= HAST(preset=preset).resolved(teacher).options().items()
    assert HAST(gamma=1, beta=3).resolved(teacher).beta == 3


def test_hast_without_gamma_is_zeroq_il():
    teacher = tiny_teacher()
    options = {"images": 4, "batch_size": 4, "iterations": 5, "crop_probability": 0.5}
    plain = ZeroQIL(**options).generate(teacher, context())
    assert torch.equal(plain.images, HAST(**options, gamma=0).generate(teacher, context()).images)
    assert not torch.equal(plain.images, HAST(**options, gamma=2).generate(teacher, context()).images)


def test_labels_do_not_matter_without_the_inception_loss():
    teacher = tiny_teacher()
    options = {"images": 3, "iterations": 3, "crop_probability": 0, "beta": 0}
    made = ZeroQIL(**options).generate(teacher, context())
    fewer = ZeroQIL(**options).generate(replace(teacher, classes=2), context())
    assert not torch.equal(made.labels, fewer.labels)
    assert torch.equal(made.images, fewer.images)


@pytest.mark.parametrize(("beta", "gamma"), [(1, 0), (0.1, 0.5), (10, 2)])
def test_the_first_loss_and_its_gradient_are_those_of_the_release(golden, resnet20, beta, gamma):
    vectors = golden("bns_hast_intraq_a")
    images = torch.from_numpy(vectors["images"]).requires_grad_()
    labels = torch.from_numpy(vectors["labels"])
    with BNLoss(resnet20, synthesis.HAST) as bn_loss:
        gap = bn_loss(images, outputs=True)
        inception = beta * inception_loss(gap.seen.outputs, labels, gamma)
        total = gap.total + inception
        total.backward()
    name = f"beta{beta}_gamma{gamma}"
    logits = gap.seen.outputs.detach()
    torch.testing.assert_close(logits, torch.from_numpy(vectors["logits"]), rtol=1e-5, atol=1e-5)
    probabilities = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(probabilities, torch.from_numpy(vectors["p_label"]), rtol=1e-5, atol=1e-6)
    assert inception.item() == pytest.approx(vectors[f"loss_target_{name}"].item(), rel=1e-5)
    if f"total_loss_{name}" in vectors:
        assert total.item() == pytest.approx(vectors[f"total_loss_{name}"].item(), rel=1e-5)
    if f"grad_images_{name}" in vectors:
        expected = torch.from_numpy(vectors[f"grad_images_{name}"])
        assert (images.grad - expected).norm() <= 2e-4 * expected.norm()


@pytest.fixture
def layered(golden):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in golden("synq_lbns_a").items()}


def test_the_first_loss_of_centres_and_its_gradient_are_those_of_the_release(layered, resnet20):
    images = layered["centre_init_images"].requires_grad_()
    assert torch.equal(centre_labels(10, 12)[0], layered["centre_labels"])
    with BNLoss(resnet20, synthesis.HAST) as bn_loss:
        gap = bn_loss(images, outputs=True)
        deep = torch.tensor(deep_layers(gap.seen.order))
        weights = torch.where(deep, DEEP_WEIGHT, SHALLOW_WEIGHT)
        mean, variance = ((weights * each).mean() for each in (gap.means, gap.moments))
        target = CENTRE_BETA * inception_loss(gap.seen.outputs, layered["centre_labels"])
        total = mean + variance + target
        total.backward()
    assert deep.tolist() == [False] * 8 + [True] * 11
    for name, found in (("mean", mean), ("var", variance), ("total", total)):
        assert float(found.detach()) == pytest.approx(float(layered[f"centre_{name}_loss"]), rel=1e-5)
    assert float(target.detach()) == pytest.approx(float(layered["centre_loss_target"]), rel=1e-5)
    expected = layered["centre_grad_images"]
    assert (images.grad - expected).norm() <= 2e-4 * expected.norm()


def test_moments_of_centres_and_what_images_differ_from_them_are_those_of_the_release(layered, resnet20):
    images, labels = layered["images"].requires_grad_(), layered["labels"]
    with BNLoss(resnet20, synthesis.HAST) as bn_loss:
        batches = [layered[f"centre_batch_{number}"] for number in range(int(layered["n_centre_batches"]))]
        centres = pooled_moments([bn_loss(batch).batch for batch in batches], [len(batch) for batch in batches])
        gap = bn_loss(images, outputs=True)
        channels, deep = gap.seen.channels, torch.tensor(deep_layers(gap.seen.order))
        of_centres = layered_gap(gap.batch, centres, channels, deep) / len(images)
        target = float(layered["beta"]) * inception_loss(gap.seen.outputs, labels, float(layered["gamma"]))
        total = STATISTICS_WEIGHT * gap.total + target + LAYERED_WEIGHT * of_centres
        total.backward()
    for moment, all_layers in zip(("mean", "var"), centres, strict=True):
        of_layers = torch.split(all_layers, channels)
        for layer in (0, 8, 18):
            torch.testing.assert_close(of_layers[layer], layered[f"calib_{moment}_{layer}"], rtol=1e-5, atol=1e-6)
    parts = {"lbns_loss": of_centres, "loss_target": target, "mean_loss": gap.means.mean()}
    for name, found in (parts | {"var_loss": gap.moments.mean()}).items():
        assert float(found.detach()) == pytest.approx(float(layered[name]), rel=1e-5)
    assert float(total.detach()) == pytest.approx(float(layered["total_loss"]), rel=1e-5)
    expected = layered["grad_images"]
    assert (images.grad - expected).norm() <= 2e-4 * expected.norm()


def test_centres_are_made_before_images_and_the_contract_is_kept():
    check_generator(HAST(images=5, batch_size=3, iterations=4, patience=0, centre_iterations=3), tiny_teacher())


@pytest.mark.parametrize("step", [1, 4, 9, 13])
def test_a_run_that_stops_among_centres_or_images_ends_as_undisturbed(step):
    options = {"images": 6, "batch_size": 4, "iterations": 3, "centre_iterations": 3}
    ctx = context()
    expected = HAST(**options).generate(tiny_teacher(), ctx)
    resumed = context(resume_from=ctx.reporter.states[step])
    found = HAST(**options).generate(tiny_teacher(), resumed)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert len(ctx.reporter.curves["centre_bn_loss"]) == 3 * 3
    assert not torch.equal(
        expected.images, HAST(**{**options, "centre_iterations": 0}).generate(tiny_teacher(), context()).images
    )


def test_without_centres_the_options_and_so_the_keys_are_what_they_were():
    assert "centre_iterations" not in HAST().options()
    assert HAST(centre_iterations=7).options()["centre_iterations"] == 7
    assert HAST.model_validate(HAST(centre_iterations=7).options()) == HAST(centre_iterations=7)
    assert HAST(centre_iterations=7, images=10).work(10) > HAST(images=10).work(10)


def test_there_are_labels_for_an_image_of_each_class_and_the_rest_is_class_0():
    assert centre_labels(5, 4).tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]
    assert centre_labels(4, 4).tolist() == [[0, 1, 2, 3]]


def test_finished_images_are_harder_with_a_larger_gamma():
    teacher = tiny_teacher()
    ends = {}
    for gamma in (0, 2):
        ctx = context()
        HAST(images=16, iterations=60, beta=10, gamma=gamma, crop_probability=0).generate(teacher, ctx)
        ends[gamma] = ctx.reporter.curves["difficulty"][-1][1]
    assert ends[2] > ends[0]


def test_it_logs_its_losses_and_how_often_difficulty_is_nothing():
    ctx = context()
    made = HAST(images=2, iterations=3).generate(tiny_teacher(), ctx)
    assert set(ctx.reporter.curves) == {"bn_loss", "inception_loss", "difficulty", "saturated", "lr"}
    assert made.provenance == {
        "preset": "released",
        "beta": 10,
        "gamma": 2,
        "crop_probability": 0,
        "crop_scale": 0.4,
    }


def test_images_of_one_class_are_made():
    teacher = tiny_teacher(classes=1)
    made = HAST(images=2, iterations=3, gamma=0.5).generate(teacher, context())
    assert made.images.isfinite().all()
    assert made.labels.tolist() == [0, 0]


def test_a_network_that_is_no_classifier_is_one_clear_error():
    teacher = replace(tiny_teacher(), classes=None)
    with pytest.raises(ZSQBenchError, match="generator 'hast' makes images of classes, and the network has none"):
        HAST(images=2, iterations=1).generate(teacher, context())
    with pytest.raises(ZSQBenchError, match="generator 'hast' makes images of classes, and the network has none"):
        HAST(images=2, iterations=1, centre_iterations=1).generate(teacher, context())
    assert HAST.needs_classes
    assert HAST.needs_bn


TRAINING = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 5, "range_batch_size": 4}


def images(count=16):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(ctx=None, scheme="hast/w3a3", **options):
    teacher, quantizer = tiny_teacher(), Training(**{**TRAINING, **options})
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, CalibrationSet(images()), ctx or context())
    return student


def first(ctx, curve):
    return ctx.reporter.curves[curve][0][1]


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
def test_the_training_is_a_quantizer(scheme):
    check_quantizer(Training(**TRAINING), scheme, tiny_teacher())


@pytest.mark.usefixtures("briefly")
@parametrize_briefly(
    "promotion, alignment",
    each_once(["fa", "kl_fa", "kl", "none"], ["none", "paper_attention", "direct", "attention"]),
    4,
)
def test_each_form_of_alignment_goes_with_each_promotion(alignment, promotion):
    if (alignment, promotion) == ("none", "fa"):
        with pytest.raises(
            ValidationError, match="promotion: fa needs aligned features, and alignment: none aligns none"
        ):
            Training(alignment=alignment, promotion=promotion)
        return
    weight = 1e-6 if alignment == "paper_attention" else None  # the published ones are for the released form
    options = {"alignment": alignment, "promotion": promotion, "alignment_weight": weight}
    check_quantizer(Training(**TRAINING, **options), "hast/w4a4", tiny_teacher())


@pytest.mark.parametrize(
    ("size", "classes", "paper", "released"),
    [
        (32, 10, (1000, 0.01), (1000, 0.01)),
        (32, 100, (2000, 0.02), (1000, 0.01)),
        (224, 1000, (4000, 0.01), (1000, 0.01)),
    ],
)
def test_lambda_and_epsilon_go_by_data_set_and_in_the_released_parser_do_not(size, classes, paper, released):
    teacher = replace(tiny_teacher(), input_size=(3, size, size), classes=classes)
    for preset, expected in (("paper", paper), ("released", released)):
        training = Training(preset=preset).resolved(teacher)
        assert (training.alignment_weight, training.epsilon) == expected


@pytest.mark.parametrize("bits", [3, 4])
def test_the_released_update_comes_out_with_all_its_gradients(golden, resnet20, bits):
    stored = {
        name: torch.from_numpy(np.asarray(value)) for name, value in golden(f"hast_finetune_w{bits}a{bits}_a").items()
    }
    teacher = Pretrained(resnet20, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=10)
    training = Training(preset="released").resolved(teacher)
    assert (training.alpha, training.temperature) == (stored["alpha"], stored["temperature"])
    assert (training.alignment_weight, training.epsilon) == (stored["lam"], stored["eps"])
    student = training.prepare(teacher, parse_scheme(f"hast/w{bits}a{bits}"))
    network = copy.deepcopy(student)
    calibrate_weights(student, "minmax")
    for (_, quantizer), (low, high) in zip(activation_quantizers(student), stored["act_ranges"], strict=True):
        quantizer.set_range(low, high)
    nodes = block_outputs(network)
    with FineTuning(student, context(), Schedule(1, 1, 0.0), {}, features=[node.name for node in nodes]) as engine:
        network = with_features(network, nodes)
        update = training.update(engine, network, context(), len(nodes))
        watched = Watched(update)
        curves = update(stored["images"], None)
        parameters = dict(zip((name for name, _ in student.named_parameters()), engine.parameters, strict=True))
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
    losses = {
        "kl": "loss_KL",
        "fa": "loss_FA",
        "promoted_kl": "loss_KL_perturbed",
        "promoted_fa": "loss_FA_perturbed",
        "loss": "loss_total",
    }
    for curve, name in losses.items():
        assert float(curves[curve].detach()) == pytest.approx(float(stored[name]), rel=1e-5)
    assert float((curves["kl"] + curves["fa"]).detach()) == pytest.approx(float(stored["loss_S"]), rel=1e-5)
    watched.check(stored, range(9))
    close(watched.gradient, stored["grad_images"])
    paths = {
        "conv1.weight": "first_conv_w",
        "layer2.0.conv1.weight": "stage2_unit0_conv1_w",
        "linear.weight": "linear_w",
        "linear.bias": "linear_b",
        "bn1.weight": "bn1_w",
        "bn1.bias": "bn1_b",
    }
    for path, name in paths.items():
        gradient = stored[f"grad_{name}"]
        assert (gradients[path] - gradient).norm() <= 1e-5 * gradient.norm()


def test_a_pixel_is_moved_by_epsilon_wherever_there_is_a_gradient(monkeypatch):
    seen = []
    plain = Training.update

    def noting(self, engine, network, *others):
        for each in (network, engine.network):
            each.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        return plain(self, engine, network, *others)

    monkeypatch.setattr(Training, "update", noting)
    trained(epochs=1, updates_per_epoch=1, epsilon=0.25)
    taught, learned, taught_harder, learned_harder = seen
    assert torch.equal(taught, learned)
    assert torch.equal(taught_harder, learned_harder)
    moved = (taught_harder - taught).abs()
    assert set(moved.mul(4).round().unique().tolist()) <= {0, 1}
    assert (moved > 0).float().mean() > 0.9


def test_without_epsilon_the_harder_images_are_the_same():
    ctx = context()
    trained(ctx, epsilon=0.0)
    assert first(ctx, "promoted_kl") == pytest.approx(first(ctx, "kl"), rel=1e-4)
    assert first(ctx, "loss") == pytest.approx(2 * (first(ctx, "kl") + first(ctx, "fa")), rel=1e-4)


def test_harder_images_are_harder():
    ctx = context()
    trained(ctx, epsilon=0.05, lr=0.0)
    assert first(ctx, "promoted_kl") + first(ctx, "promoted_fa") > first(ctx, "kl") + first(ctx, "fa")


def test_losses_are_weighed_by_whose_they_are():
    ctx = context()
    trained(ctx, original_weight=2.0, promoted_weight=3.0)
    curves = {name: first(ctx, name) for name in ("kl", "fa", "promoted_kl", "promoted_fa", "loss")}
    expected = 2 * (curves["kl"] + curves["fa"]) + 3 * (curves["promoted_kl"] + curves["promoted_fa"])
    assert curves["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("promotion", ["kl_fa", "kl"])
def test_the_gradient_is_that_of_both_losses(promotion):
    """A weight of 0 leaves out a half: the sum of the halves is the whole."""
    moves = []
    for original, promoted in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        student = trained(
            epochs=1,
            updates_per_epoch=1,
            lr=1e-3,
            momentum=0.0,
            weight_decay=0.0,
            promotion=promotion,
            original_weight=original,
            promoted_weight=promoted,
        )
        moves.append(dict(student.named_parameters())["classifier.bias"] - tiny_teacher().module.classifier.bias)
    torch.testing.assert_close(moves[0], moves[1] + moves[2], rtol=1e-3, atol=1e-7)


def test_no_promotion_is_one_pass_of_each():
    ctx = context()
    trained(ctx, promotion="none")
    assert "promoted_kl" not in ctx.reporter.curves
    assert first(ctx, "loss") == pytest.approx(first(ctx, "kl") + first(ctx, "fa"), rel=1e-5)


@pytest.mark.parametrize("options", [{"promoted_weight": 0}, {"promotion": "none"}])
def test_something_has_to_be_trained_on(options):
    with pytest.raises(ValidationError, match="original_weight is 0, and no harder image is trained on"):
        Training(original_weight=0, **options)


def test_a_network_with_nothing_to_align_is_one_clear_line():
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)]
    teacher = replace(tiny_teacher(), module=torch.nn.Sequential(*layers).eval().requires_grad_(False))
    training = Training(**TRAINING)
    student = training.prepare(teacher, parse_scheme("hast/w4a4"))
    with pytest.raises(ZSQBenchError, match="Sequential has no convolution to align: take alignment: none"):
        training.quantize(student, teacher, CalibrationSet(images()), context())


def test_interrupted_training_ends_as_undisturbed():
    ctx = context()
    expected = trained(ctx)
    found = trained(context(resume_from=ctx.reporter.states[2]))
    finalize(expected)
    finalize(found)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())


def test_a_note_says_which_layers_are_aligned():
    ctx = context()
    trained(ctx)
    assert ctx.reporter.notes == ["1 layers are aligned: inner.1"]
