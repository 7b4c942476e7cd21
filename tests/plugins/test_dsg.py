import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from zsqbench import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import HAST, ZEROQ, BNLoss, total_variation
from zsqbench.testing import check_generator, context, tiny_teacher

catalog = load_plugins()
DSG, DSGIL, ZeroQIL = (catalog.find("generator", name).method for name in ("dsg", "dsg_il", "zeroq_il"))
dsg = sys.modules[DSG.__module__]


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_dsg_keeps_the_contract_of_generators_also_when_interrupted(preset):
    made = check_generator(
        DSG(preset=preset, images=5, batch_size=3, iterations=4, patience=0, margin_images=8), tiny_teacher()
    )
    assert (made.labels is None) == (preset == "paper")


def test_dsg_il_keeps_the_contract_of_generators_also_when_interrupted():
    made = check_generator(DSGIL(images=5, batch_size=2, iterations=4, patience=0, margin_images=8), tiny_teacher())
    assert made.labels.shape == (5,)


def test_the_defaults_of_dsg_are_those_of_the_release_where_it_has_some():
    assert DSG().options() == {
        "preset": "paper",
        "images": 64,
        "batch_size": 64,
        "iterations": 500,
        "lr": 0.9,
        "factor": 0.1,
        "patience": 260,
        "min_lr": 1e-4,
        "margin": 0.9,
        "margin_images": 1024,
        "enhancement": True,
        "emphasised": None,
        "extended": None,
        "pairing": "conv_output",
    }


def emphasis(layers, **options):
    return DSG(**options).resolved(tiny_teacher()).emphasis(layers)


def test_an_image_emphasises_the_layer_of_its_number():
    factors = emphasis(3, images=5)
    assert factors.tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 2], [2, 1, 1], [1, 2, 1]]
    assert torch.equal(emphasis(3, images=4, enhancement=False), torch.ones(4, 3))


def test_the_release_emphasises_twenty_layers_of_as_many_images():
    factors = emphasis(25, preset="released", images=30)
    assert torch.equal(factors[:20, :20], torch.ones(20, 20) + torch.eye(20))
    assert torch.equal(factors[20:], torch.ones(10, 25))
    assert torch.equal(factors[:, 20:], torch.ones(30, 5))
    assert torch.equal(emphasis(2, preset="released", images=4), torch.tensor([[2.0, 1], [1, 2], [1, 1], [1, 1]]))


def first_loss(method):
    ctx = context()
    method.generate(tiny_teacher(), ctx)
    return ctx.reporter.curves["bn_loss"][0][1]


def test_without_margins_the_loss_is_zeroqs_and_an_emphasis_adds_to_it(monkeypatch):
    monkeypatch.setattr(dsg, "_with_margins", lambda *_: {})
    teacher = tiny_teacher()
    with BNLoss(teacher.module, ZEROQ) as bn_loss:
        expected = bn_loss(context().rand(3, *teacher.input_size)).total.item()
    assert first_loss(DSG(images=3, iterations=1, enhancement=False)) == pytest.approx(expected, rel=1e-5)
    assert first_loss(DSG(images=3, iterations=1)) > 1.1 * expected


def test_margins_make_the_loss_smaller():
    losses = [
        first_loss(DSG(images=3, iterations=1, margin=margin, margin_images=8, enhancement=False))
        for margin in (0.1, 0.5, 0.9)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_margins_let_gaussian_noise_as_it_is():
    teacher = tiny_teacher()
    noise = context().randn(16, *teacher.input_size)
    with BNLoss(teacher.module, HAST) as bn_loss:
        before = bn_loss(noise).total
        bn_loss.allow(bn_loss.gap_quantiles([noise[:10], noise[10:]], 1.0))
        after = bn_loss(noise.requires_grad_()).total
        after.backward()
    assert before > 0
    assert after == 0
    assert not noise.grad.any()


def test_dsg_il_without_margins_is_zeroq_il(monkeypatch):
    teacher, options = tiny_teacher(), {"images": 4, "batch_size": 4, "iterations": 3}
    plain = ZeroQIL(**options).generate(teacher, context())
    assert not torch.equal(plain.images, DSGIL(**options, margin_images=2).generate(teacher, context()).images)
    monkeypatch.setattr(dsg, "_with_margins", lambda *_: {})
    assert torch.equal(plain.images, DSGIL(**options).generate(teacher, context()).images)


def test_the_correlation_loss_of_the_noise_itself_is_that_of_its_directions():
    noise = context().randn(6, 3, 4, 4)
    lines = functional.normalize(noise.flatten(1))
    values = torch.linalg.eigvalsh(lines @ lines.T)
    weights = (values - values.min()) / (values.max() - values.min())
    assert dsg.correlation_loss(noise, noise).item() == pytest.approx(weights.sum().item(), rel=1e-4)


def test_the_correlation_loss_by_hand():
    noise, images = (context(seed).randn(6, 3, 4, 4).double() for seed in (0, 1))
    spectra = []
    for each in (images, noise):
        lines = each.flatten(1) / each.flatten(1).norm(dim=1, keepdim=True)
        spectra.append(torch.linalg.eigh(lines @ lines.T))
    (values, vectors), (expected, directions) = spectra
    weights = (expected - expected.min()) / (expected.max() - expected.min())
    by_hand = 1e-4 * (values - expected).square().mean() + (weights * (vectors * directions).sum(0)).sum().abs()
    assert dsg.correlation_loss(images, noise).item() == pytest.approx(by_hand.item(), rel=1e-9)


def test_what_the_release_adds_is_weighted_as_there():
    pixels, logits, labels = context(1).randn(4, 3, 8, 8), context(2).randn(4, 10), torch.arange(4)
    found = dsg._extension(pixels, logits, labels, 5, context())
    ctx = context()
    shift = int(61 * ctx.rand(1)) - 30
    rolled = pixels.roll((shift, shift), (2, 3))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "correlation_loss": dsg.correlation_loss(pixels, ctx.randn(4, 3, 8, 8)).item() / 5,
            "inception_loss": 2 * functional.cross_entropy(logits, labels).item(),
            "variation_loss": 0.01 * total_variation(rolled).item(),
            "norm_loss": 0.01 * pixels.square().sum((1, 2, 3)).sqrt().mean().item(),
        },
        rel=1e-5,
    )


def test_total_variation_by_hand():
    images = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])
    assert total_variation(images).item() == pytest.approx(5 + 5 + 0 + 1)  # right, down, and both diagonals


def test_all_of_the_released_code_needs_a_classifier():
    teacher = replace(tiny_teacher(), classes=None)
    DSG(images=2, iterations=1, margin_images=2).generate(teacher, context())
    with pytest.raises(
        ZSQBenchError, match="generator 'dsg' needs a classifier where it is extended, as in its preset"
    ):
        DSG(preset="released", images=2, iterations=1).generate(teacher, context())
