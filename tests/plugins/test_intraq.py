import sys
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from zsqbench import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import HAST, BNLoss, Crops, PenultimateFeatures, resized_crops
from zsqbench.testing import check_generator, context, tiny_teacher

IntraQ = load_plugins().find("generator", "intraq").method
intraq = sys.modules[IntraQ.__module__]


def test_it_keeps_the_contract_of_generators_also_when_interrupted():
    made = check_generator(IntraQ(images=5, batch_size=2, iterations=4, patience=0), tiny_teacher())
    assert made.labels.shape == (5,)


def test_the_defaults_are_those_of_the_release():
    assert IntraQ().options() == {
        "preset": "released",
        "images": 5120,
        "batch_size": 256,
        "iterations": 1000,
        "lr": 0.5,
        "factor": 0.1,
        "patience": 50,
        "min_lr": 1e-4,
        "crop_probability": None,
        "crop_scale": None,
        "target": None,
        "nearest": None,
        "farthest": None,
    }


@pytest.mark.parametrize(
    ("side", "classes", "preset", "expected"),
    [
        (32, 10, "released", (0.95, 0.05, 0.8)),
        (32, 100, "released", (0.6, 0.02, 1.0)),
        (224, 1000, "released", (1.0, 0.0, 2.0)),
        (224, 1000, "paper", (0.9, 0.3, 0.8)),
    ],
)
def test_what_is_not_given_is_published_for_a_data_set_like_the_networks(side, classes, preset, expected):
    teacher = replace(tiny_teacher(), input_size=(3, side, side), classes=classes)
    method = IntraQ(preset=preset).resolved(teacher)
    assert (method.target, method.nearest, method.farthest) == expected
    assert (method.crop_probability, method.crop_scale) == (0.5, 0.5)


def test_a_limit_beyond_the_other_one_that_is_filled_in_is_one_clear_line():
    with pytest.raises(ZSQBenchError, match=r"nearest 0\.9 is beyond farthest 0\.8; give these options too"):
        IntraQ(nearest=0.9).resolved(tiny_teacher())


@pytest.mark.parametrize("name", ["intraq_cifar10_a", "intraq_cifar10_aug_a"])
def test_the_losses_and_their_gradient_are_those_of_the_release(golden, resnet20, name):
    vectors = golden(name)
    released = IntraQ().resolved(replace(tiny_teacher(), input_size=(3, 32, 32)))
    assert (released.target, released.crop_scale) == (vectors["targetPro"], vectors["augMargin"])
    images = torch.from_numpy(vectors["images"]).requires_grad_()
    labels = torch.from_numpy(vectors["labels"])
    seen = images
    if "flip" in vectors:
        boxes = torch.from_numpy(vectors["crop_top_left_h_w"]).float().unbind(1)
        seen = resized_crops(images, Crops(*boxes, torch.from_numpy(vectors["flip"]).bool()))
        torch.testing.assert_close(seen.detach(), torch.from_numpy(vectors["augmented_images"]), rtol=1e-5, atol=1e-5)
    sums, counts = torch.zeros(10, 64), torch.zeros(10)
    for label in range(10):
        if f"stored_features_class{label}" in vectors:
            stored = torch.from_numpy(vectors[f"stored_features_class{label}"])
            sums[label], counts[label] = stored.sum(0), len(stored)
    targets = torch.from_numpy(vectors["new_labels"]).gather(1, labels[:, None])[:, 0]
    with BNLoss(resnet20, HAST) as bn_loss, PenultimateFeatures(resnet20) as features:
        gap = bn_loss(seen, outputs=True)
        band = float(vectors["cosineMargin"]), float(vectors["cosineMargin_upper"])
        near, far = intraq.marginal_distances(features.last, labels, sums, counts, *band)
        target = intraq.soft_inception_loss(gap.seen.outputs, labels, targets)
        total = gap.total + target + near + far
        total.backward()
        pooled, logits = features.last.detach(), gap.seen.outputs.detach()
    distances = [
        intraq.marginal_distances(pooled[[image]], labels[[image]], sums, counts, 0.0, 0.0)[1] for image in range(10)
    ]
    cosines = (1 - torch.stack(distances)) * (counts[labels] > 0)
    found = {"logits": logits, "softmax": logits.softmax(1), "last_features": pooled, "cosine_similarity": cosines}
    for what, tensor in found.items():
        torch.testing.assert_close(tensor, torch.from_numpy(vectors[what]), rtol=1e-5, atol=1e-5)
    for terms, loss in ((gap.means, "mean_loss"), (gap.moments, "var_loss")):
        assert terms.mean().item() == pytest.approx(vectors[loss].item(), rel=1e-5)
    assert target.item() == pytest.approx(vectors["loss_target"].item(), rel=1e-5)
    assert near.item() == pytest.approx(vectors["loss_cosineDistance"].item(), rel=1e-5, abs=1e-7)
    assert far.item() == pytest.approx(vectors["loss_cosineDistance_upper"].item(), rel=1e-5)
    assert total.item() == pytest.approx(vectors["total_loss"].item(), rel=1e-5)
    expected = torch.from_numpy(vectors["grad_images"])
    assert (images.grad - expected).norm() <= 3e-4 * expected.norm()


def test_images_of_classes_without_a_centre_are_not_held_anywhere():
    features, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    sums, counts = torch.tensor([[0.0, 3.0], [0.0, 0.0]]), torch.tensor([3.0, 0.0])
    near, far = intraq.marginal_distances(features, labels, sums, counts, 0.05, 0.8)
    assert near == 0
    assert far.item() == pytest.approx(0.2, rel=1e-4)  # of one image, at a right angle to its centre
    near, far = intraq.marginal_distances(features, labels, 0 * sums, 0 * counts, 0.05, 0.8)
    assert (near, far) == (0, 0)


def test_margins_of_the_whole_range_hold_nothing():
    noise = torch.Generator().manual_seed(0)
    features, sums = torch.randn(20, 4, generator=noise), torch.randn(3, 4, generator=noise)
    labels = torch.arange(20) % 3
    assert intraq.marginal_distances(features, labels, sums, torch.ones(3), 0.0, 2.0) == (0, 0)


def test_half_of_the_targets_are_one_and_the_others_above_the_lowest():
    targets = IntraQ(images=2000, target=0.6)._draw_targets(context())
    assert (targets == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.6 <= targets.min() < 0.62
    assert torch.equal(IntraQ(images=50, target=1)._draw_targets(context()), torch.ones(50))


def test_the_first_batch_has_no_centres_and_the_second_those_of_the_first():
    ctx = context()
    # noise of one class lies together, so that a band which begins at a right angle holds all that have a centre
    method = IntraQ(images=8, batch_size=4, iterations=3, nearest=1, farthest=2, crop_probability=0)
    method.generate(tiny_teacher(classes=1), ctx)
    curve = [value for _, value in ctx.reporter.curves["nearest_loss"]]
    assert curve[:3] == [0, 0, 0]
    assert all(value > 0 for value in curve[3:])


def test_the_loss_is_the_sum_of_its_parts_each_with_weight_one():
    teacher, ctx = tiny_teacher(), context()
    minimised = []
    method = IntraQ(images=4, batch_size=2, iterations=2, nearest=1, farthest=1).resolved(teacher)

    def synthesize(*arguments, **named):
        losses = arguments[2]

        def noted(images, labels, batch):
            total, parts = losses(images, labels, batch)
            minimised.append((total.item(), sum(part.item() for part in parts.values())))
            return total, parts

        return IntraQ.synthesize(method, *arguments[:2], noted, *arguments[3:], **named)

    method.__dict__["synthesize"] = synthesize
    method.generate(teacher, ctx)
    assert set(ctx.reporter.curves) == {"bn_loss", "soft_inception_loss", "nearest_loss", "farthest_loss", "lr"}
    assert len(minimised) == 4
    for total, parts in minimised:
        assert total == pytest.approx(parts, rel=1e-5)


def test_a_band_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValidationError, match=r"nearest 0\.5 is beyond farthest 0\.2"):
        IntraQ(nearest=0.5, farthest=0.2)


def test_a_network_that_returns_no_logits_is_one_clear_error():
    class Detector(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return {"boxes": self.inner(images)}

    teacher = tiny_teacher()
    teacher = replace(teacher, module=Detector(teacher.module).eval())
    with pytest.raises(ZSQBenchError, match="labels ask for logits, one row of classes for each of 2 images"):
        IntraQ(images=2, iterations=1).generate(teacher, context())
