import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from zsqbench_plugins.shared.gdfq_generator import (
    ConditionalImages,
    Mixture,
    QimeraTraining,
    class_weights,
    gdfq_loss,
    gdfq_training,
    qimera_training,
)

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis import HAST, BNLoss, GeneratorBatch
from zsqbench.testing import tiny_teacher

SIZE = (3, 8, 8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def maker(conditioning="product", size=SIZE, latent=6, **options):
    return ConditionalImages(latent, 5, size, conditioning, rng(), **options)


def training(bn_loss, **options):
    generator = rng()
    made = ConditionalImages(6, 10, SIZE, "embedding", generator)
    return QimeraTraining(made, bn_loss, 4, 10, generator, Mixture(latent=made.latent, embeddings="random", **options))


@pytest.mark.parametrize("conditioning", ["product", "norm", "embedding"])
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 10, 7), (3, 32, 32)])
def test_images_have_the_size_that_was_asked_for_and_are_standardised(conditioning, size):
    images = maker(conditioning, size)(torch.randn(16, 6, generator=rng(1)), torch.arange(16) % 5)
    assert images.shape == (16, *size)
    assert images.isfinite().all()
    if size[1] % 4 == size[2] % 4 == 0:
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(size[0]), rtol=0, atol=1e-4)
        torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(size[0]), rtol=0, atol=0.02)


def test_the_network_is_that_of_the_release():
    shapes = {name: tuple(value.shape) for name, value in maker("product", (3, 32, 32), 100).named_parameters()}
    assert shapes["embedding.weight"] == (5, 100)
    assert shapes["first.weight"] == (128 * 8 * 8, 100)
    assert shapes["convolutions.0.weight"] == (128, 128, 3, 3)
    assert shapes["convolutions.1.weight"] == (64, 128, 3, 3)
    assert shapes["last.weight"] == (3, 64, 3, 3)
    assert [norm.norm.eps for norm in maker().norms] == [1e-5, 0.8, 0.8]


def test_norms_by_class_that_are_alike_are_plain_norms():
    plain, by_class = maker("product"), maker("norm")
    noise, classes = torch.randn(8, 6, generator=rng(1)), torch.arange(8) % 5
    by_class.load_state_dict(
        {name: value for name, value in plain.state_dict().items() if name in by_class.state_dict()}, strict=False
    )
    plain.embedding.weight.data.fill_(1.0)
    torch.testing.assert_close(plain(noise, classes), by_class(noise, classes))


def test_classes_change_what_is_made():
    noise = torch.randn(1, 6, generator=rng(1)).expand(5, -1)
    images = maker("product")(noise, torch.arange(5))
    assert all(not torch.allclose(images[0], images[index]) for index in range(1, 5))


def test_embeddings_that_are_given_do_not_learn():
    given = torch.randn(5, 6, generator=rng(2))
    made = maker("embedding", embeddings=given)
    assert not any("embedding" in name for name, _ in made.named_parameters())
    noise = torch.zeros(5, 6)
    torch.testing.assert_close(made._latents(noise, torch.arange(5), None), functional.layer_norm(given, (6,)))


def test_one_class_of_a_mixture_is_standardised_over_images_and_dimensions():
    made = maker("embedding")
    noise, classes = torch.randn(4, 2, 6, generator=rng(1)), torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])
    first_only = torch.tensor([1.0, 0.0]).expand(4, 2)
    latents = (made.embedding(classes) + noise)[:, 0]
    expected = (latents - latents.mean()) / (latents.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(made._latents(noise, classes, first_only), expected)


def test_gdfqs_loss_by_hand():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    loss, curves = gdfq_loss(GeneratorBatch(labels, logits, torch.tensor(2.0), None))
    assert loss.item() == pytest.approx(math.log(4) + 0.2)
    assert {name: value.item() for name, value in curves.items()} == {
        "generator_ce": pytest.approx(math.log(4)),
        "generator_bn": 2.0,
    }


def test_mixed_labels_sum_to_one_over_the_classes_of_an_image():
    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        trainer = training(bn_loss, mixed=1.0, mixed_classes=3)
        _, labels, _, _ = trainer.step()
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    assert all(1 <= int((row > 0).sum()) <= 3 for row in labels)


def test_never_mixed_has_one_class_an_image():
    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        _, labels, _, _ = training(bn_loss, mixed=0.0, mixed_classes=3).step()
    assert set(labels.flatten().tolist()) == {0, 1}


def test_weights_of_classes_are_those_of_the_last_linear_layer():
    module = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 3))
    assert torch.equal(class_weights(module, 10), module[2].weight)
    with pytest.raises(ZSQBenchError, match="has no linear layer with 7 outputs whose weights stand for"):
        class_weights(module, 7)


@pytest.mark.parametrize(("side", "conditioning"), [(8, "product"), (63, "product"), (64, "norm")])
def test_gdfqs_generator_goes_by_the_size_of_images(side, conditioning):
    teacher = tiny_teacher((3, side, side))
    with BNLoss(teacher.module, HAST) as bn_loss:
        made = gdfq_training(bn_loss, teacher, 4, rng(), method="gdfq").maker
    assert (made.conditioning, made.latent, made.size) == (conditioning, 100, (3, side, side))


@pytest.mark.parametrize(("embeddings", "latent"), [("random", 7), ("network", 8)])
def test_qimeras_generator_reads_embeddings_that_learn_or_weights_of_the_network(embeddings, latent):
    teacher = tiny_teacher()
    mixture = Mixture(mixed=1.0, mixed_classes=3, latent=7, embeddings=embeddings)
    with BNLoss(teacher.module, HAST) as bn_loss:
        trainer = qimera_training(bn_loss, teacher, 4, rng(), 1e-3, mixture, method="qimera")
        _, labels, _, _ = trainer.step()
    assert (trainer.maker.conditioning, trainer.maker.latent) == ("embedding", latent)
    assert (trainer.maker.embedding is None) == (embeddings == "network")
    assert ((labels > 0).sum(1) > 1).any()


def test_a_network_without_classes_is_one_clear_line():
    teacher = replace(tiny_teacher(), classes=None)
    with (
        BNLoss(teacher.module, HAST) as bn_loss,
        pytest.raises(ZSQBenchError, match="gdfq trains a generator of images of classes, and the network has none"),
    ):
        gdfq_training(bn_loss, teacher, 4, rng(), method="gdfq")


def test_images_are_what_the_layers_of_the_release_make():
    made, noise = maker("norm"), torch.randn(8, 6, generator=rng(1))

    def normalised(maps, eps):
        return functional.batch_norm(maps, None, None, training=True, eps=eps)

    maps = normalised(made.first(noise).view(8, 128, 2, 2), 1e-5)
    for convolution in made.convolutions:
        maps = convolution(maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
        maps = normalised(maps, 0.8)
        maps = torch.where(maps < 0, 0.2 * maps, maps)
    expected = normalised(made.last(maps).tanh(), 1e-5)
    torch.testing.assert_close(made(noise, torch.arange(8) % 5), expected, rtol=1e-4, atol=1e-5)


def test_a_step_minimises_the_cross_entropy_plus_a_tenth_of_the_gap_from_the_statistics():
    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        trainer, by_hand = (training(bn_loss, mixed=0.0, mixed_classes=2) for _ in range(2))
        trainer.step(lr=0.0)
        read, labels = by_hand.draw()
        gap = bn_loss(by_hand.maker(*read), outputs=True)
        (functional.cross_entropy(gap.seen.outputs, labels) + 0.1 * gap.total).backward()
    for found, expected in zip(trainer.maker.parameters(), by_hand.maker.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    assert trainer._optimizer.defaults["betas"] == (0.5, 0.999)
