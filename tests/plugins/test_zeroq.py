import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from zsqbench import Pretrained, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import ZEROQ, BNLoss
from zsqbench.testing import check_generator, context, tiny_teacher

ZeroQ = load_plugins().find("generator", "zeroq").method
zeroq = sys.modules[ZeroQ.__module__]


@pytest.mark.parametrize("pairing", ["conv_output", "bn_input"])
def test_zeroq_keeps_the_contract_of_generators_also_when_interrupted(pairing):
    check_generator(ZeroQ(images=5, batch_size=2, iterations=4, patience=0, pairing=pairing), tiny_teacher())


def test_the_defaults_are_those_of_the_release():
    assert ZeroQ().options() == {
        "images": 64,
        "batch_size": 64,
        "iterations": 500,
        "lr": 0.5,
        "factor": 0.1,
        "patience": 100,
        "min_lr": 1e-4,
        "pairing": None,
    }


def test_the_initial_pixels_are_those_of_the_release():
    pixels = zeroq.initial_pixels((16, 3, 32, 32), context())
    assert pixels.std().item() == pytest.approx(0.0136, abs=1e-4)
    assert pixels.min().item() == pytest.approx(-127.5 / 5418.75)
    assert pixels.max().item() == pytest.approx(126.5 / 5418.75)


def test_the_first_step_of_adam_has_the_length_of_the_learning_rate():
    teacher, ctx = tiny_teacher(), context()
    start = zeroq.initial_pixels((3, *teacher.input_size), context())
    made = ZeroQ(images=3, iterations=1).generate(teacher, ctx).images
    moved = (made - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=1e-3, atol=1e-3)


def test_the_loss_that_is_logged_is_zeroqs_and_falls():
    teacher, ctx = tiny_teacher(), context()
    ZeroQ(images=4, iterations=100).generate(teacher, ctx)
    curve = [value for _, value in ctx.reporter.curves["bn_loss"]]
    with BNLoss(teacher.module, ZEROQ) as loss:
        first = loss(zeroq.initial_pixels((4, *teacher.input_size), context())).total
    assert curve[0] == pytest.approx(first.item(), rel=1e-5)
    assert min(curve) < curve[0] / 5


def test_an_image_does_not_depend_on_its_batch_while_the_learning_rate_is_constant():
    teacher = tiny_teacher()
    together = ZeroQ(images=3, iterations=5, pairing="bn_input").generate(teacher, context()).images
    start = zeroq.initial_pixels((3, *teacher.input_size), context())
    with BNLoss(teacher.module, replace(ZEROQ, hook_point="bn_input")) as loss:
        for image, expected in zip(start, together, strict=True):
            pixels = image[None].clone().requires_grad_()
            optimizer = torch.optim.Adam([pixels], lr=0.5)
            for _ in range(5):
                optimizer.zero_grad()
                (loss(pixels).total / 3).backward()
                optimizer.step()
            torch.testing.assert_close(pixels.detach()[0], expected, rtol=1e-3, atol=1e-3)


def test_the_learning_rate_falls_on_a_plateau_and_each_batch_starts_anew():
    ctx = context()
    ZeroQ(images=4, batch_size=2, iterations=6, lr=30, patience=0, min_lr=1.0).generate(tiny_teacher(), ctx)
    rates = [value for _, value in ctx.reporter.curves["lr"]]
    assert min(rates) >= 1
    assert rates[5] < 30
    assert rates[6] == 30


def test_a_network_without_batch_normalisation_is_one_clear_error():
    teacher = replace(tiny_teacher(), module=nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ZSQBenchError, match="has no batch normalisation"):
        ZeroQ(images=2, iterations=1).generate(teacher, context())
    assert ZeroQ.needs_bn


def test_statistics_are_of_inputs_where_convolutions_and_normalisations_do_not_fit_together():
    module = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    teacher = Pretrained(module.eval().requires_grad_(False), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)
    for pairing, expected in ((None, "bn_input"), ("bn_input", None)):
        ctx = context()
        images = ZeroQ(images=2, iterations=2, pairing=pairing).generate(teacher, ctx).images
        assert images.isfinite().all()
        assert ctx.reporter.notes == ([f"BN statistics are compared with {expected}"] if expected else [])
    with pytest.raises(ZSQBenchError, match="pair each with its own input instead"):
        ZeroQ(images=2, iterations=2, pairing="conv_output").generate(teacher, context())
