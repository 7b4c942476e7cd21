from dataclasses import replace

import pytest
import torch

from zsqbench import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import HAST, BNLoss, inception_loss
from zsqbench.testing import check_generator, context, tiny_teacher

catalog = load_plugins()
ZeroQIL, Hast = (catalog.find("generator", name).method for name in ("zeroq_il", "hast"))


@pytest.mark.parametrize("method", [ZeroQIL, Hast])
@pytest.mark.parametrize("crop_probability", [0, 0.5])
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
    assert Hast().options() == shared | {"gamma": None}


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
    assert {name: Hast(preset=preset).published(name, teacher) for name in expected} == expected
    assert Hast(gamma=1, beta=3).published("beta", teacher) == 3


def test_hast_without_gamma_is_zeroq_il():
    teacher = tiny_teacher()
    options = {"images": 4, "batch_size": 4, "iterations": 5, "crop_probability": 0.5}
    plain = ZeroQIL(**options).generate(teacher, context())
    assert torch.equal(plain.images, Hast(**options, gamma=0).generate(teacher, context()).images)
    assert not torch.equal(plain.images, Hast(**options, gamma=2).generate(teacher, context()).images)


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
    with BNLoss(resnet20, HAST) as bn_loss:
        gap = bn_loss(images, outputs=True)
        inception = beta * inception_loss(gap.seen.outputs, labels, gamma)
        total = gap.total + inception
        total.backward()
    name = f"beta{beta}_gamma{gamma}"
    assert inception.item() == pytest.approx(vectors[f"loss_target_{name}"].item(), rel=1e-5)
    if f"total_loss_{name}" in vectors:
        assert total.item() == pytest.approx(vectors[f"total_loss_{name}"].item(), rel=1e-5)
    if f"grad_images_{name}" in vectors:
        expected = torch.from_numpy(vectors[f"grad_images_{name}"])
        assert (images.grad - expected).norm() <= 2e-4 * expected.norm()


def test_finished_images_are_harder_with_a_larger_gamma():
    teacher = tiny_teacher()
    ends = {}
    for gamma in (0, 2):
        ctx = context()
        Hast(images=16, iterations=60, beta=10, gamma=gamma, crop_probability=0).generate(teacher, ctx)
        ends[gamma] = ctx.reporter.curves["difficulty"][-1][1]
    assert ends[2] > ends[0]


def test_it_logs_its_losses_and_how_often_difficulty_is_nothing():
    ctx = context()
    made = Hast(images=2, iterations=3).generate(tiny_teacher(), ctx)
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
    made = Hast(images=2, iterations=3, gamma=0.5).generate(teacher, context())
    assert made.images.isfinite().all()
    assert made.labels.tolist() == [0, 0]


def test_a_network_that_is_no_classifier_is_one_clear_error():
    teacher = replace(tiny_teacher(), classes=None)
    with pytest.raises(ZSQBenchError, match="generator 'hast' makes images of classes, and the network has none"):
        Hast(images=2, iterations=1).generate(teacher, context())
    assert Hast.needs_classes
    assert Hast.needs_bn
