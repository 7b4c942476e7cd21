import itertools
from dataclasses import replace

import pytest
import torch
from brief import parametrize_briefly
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from zsqbench_plugins.attention_prior import AttentionPrior, Look, Views, cut, make_views, prior_loss
from zsqbench_plugins.shared.jittered import JitteredBatch

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods.work import STEP
from zsqbench.quant import KeyGrid, find_attention
from zsqbench.synthesis import soft_labels
from zsqbench.testing import MemoryReporter, check_generator, context, tiny_teacher, tiny_transformer
from zsqbench.testing.networks import _Block, tiny_transformers

SHORT = {"images": 6, "batch_size": 4, "iterations": 3, "warmup": 2}
SIDES = (8, 12)


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("options", [{"phases": 1, "views": 0, "components": 1, "prior_weight": 10.0}, {}], 1)
def test_it_is_a_generator(options):
    for teacher in tiny_transformers().values():
        check_generator(AttentionPrior(**SHORT, **options), teacher)


def generated(teacher, **options):
    ctx = context()
    ctx.reporter = reporter = MemoryReporter(rng=ctx.rng)
    made = AttentionPrior(**{**SHORT, **options}).generate(teacher, ctx)
    return made, {name: [value for _, value in points] for name, points in reporter.curves.items()}, reporter.notes


def cuts(count=200, classes=10, **options):
    chances = torch.rand(count, 19, generator=torch.Generator().manual_seed(1))
    return cut(AttentionPrior(**options), chances, SIDES, classes)


def boxes(found, image):
    """The rectangles of an image that are views: rows, then columns."""
    for number in range(int(found.count[image])):
        view = found.view(number)
        (at,) = (view.owners == image).nonzero()[0]
        crops = view.crops
        top, left, height, width = (int(each[at]) for each in (crops.top, crops.left, crops.height, crops.width))
        yield slice(top, top + height), slice(left, left + width)


def test_views_do_not_overlap_and_four_of_them_are_the_image():
    found = cuts()
    assert found.count.unique().tolist() == [1, 2, 3, 4]
    for image in range(200):
        seen = torch.zeros(SIDES)
        for rows, columns in boxes(found, image):
            assert rows.stop - rows.start >= 2
            assert columns.stop - columns.start >= 3
            seen[rows, columns] += 1
        assert seen.max() == 1
        assert (seen.min() == 1) == (found.count[image] == 4)


def test_places_and_numbers_of_views_are_drawn():
    found = cuts(views=3)
    assert found.count.unique().tolist() == [1, 2, 3]
    assert [each.unique().tolist() for each in found.corner.unbind(1)] == [[*range(2, 7)], [*range(3, 10)]]
    assert found.order[:, 0].unique().tolist() == [0, 1, 2, 3]
    assert cuts(views=0).count.unique().tolist() == [0]


def test_views_are_rectangles_resized_as_torch_does_and_send_gradients_nowhere_else():
    found, pixels = cuts(count=4), torch.randn(4, 3, *SIDES, requires_grad=True)
    for number in range(4):
        view = found.view(number)
        for at, owner in enumerate(view.owners.tolist()):
            rows, columns = list(boxes(found, owner))[number]
            expected = functional.interpolate(pixels[owner : owner + 1, :, rows, columns], SIDES, mode="bilinear")
            enlarged = view.enlarged(pixels)[at]
            torch.testing.assert_close(enlarged, expected[0], rtol=1e-5, atol=1e-5)
            (gradient,) = torch.autograd.grad(enlarged.square().sum(), pixels)
            inside = torch.zeros_like(gradient, dtype=torch.bool)
            inside[owner, :, rows, columns] = True
            assert (gradient[~inside] == 0).all()
            assert gradient[inside].abs().min() > 0


def test_an_image_wants_the_classes_of_its_views_and_each_view_its_own():
    found = cuts(classes=1000)
    labels = found.labels()
    torch.testing.assert_close(labels.sum(1), torch.ones(200))
    for image, count in enumerate(found.count.tolist()):
        wanted = set(found.wanted[image, :count].tolist())
        assert set(labels[image].topk(len(wanted)).indices.tolist()) == wanted
        assert (labels[image] > labels[image].min()).sum() == len(wanted)
    view = found.view(1)
    assert view.labels.argmax(1).tolist() == found.wanted[view.owners, 1].tolist()
    logits = (view.labels.amax(1) / view.labels.amin(1)).log()
    assert 5 <= logits.min() < 6
    assert 9 < logits.max() <= 10


def test_an_image_without_views_wants_one_class():
    found = cuts(views=0)
    assert found.labels().argmax(1).tolist() == found.wanted[:, 0].tolist()


def looks(weight=2.0):
    return [Look(None, KeyGrid(1, 4, 4), 2, weight), Look(None, KeyGrid(0, 3, 3), 3, 10 * weight)]


def test_each_view_and_head_has_a_blob_of_its_own():
    found = cuts(count=5)
    blobs = torch.rand(5, 5, 5, 21, generator=torch.Generator().manual_seed(2))
    views = make_views(AttentionPrior(), found, blobs, looks(), torch.device("cpu"))
    several = 5 + int(found.count.sum())
    assert [tuple(each.shape) for each in views.priors] == [(several, 2, 16), (several, 3, 9)]
    flat = views.priors[0].flatten(0, 1)
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(flat, 2))
    again = make_views(AttentionPrior(), found.of(slice(2, 5)), blobs[2:], looks(), torch.device("cpu"))
    assert torch.equal(again.priors[1][:3], views.priors[1][2:5])


def test_the_loss_is_what_the_docstring_says():
    torch.manual_seed(0)
    options = AttentionPrior(class_weight=3.0, variation_weight=0.5)
    found = cuts(count=2)
    views = make_views(options, found, torch.rand(2, 5, 5, 21), looks(), torch.device("cpu"))
    pixels = torch.randn(2, 3, *SIDES)
    batch = JitteredBatch(pixels.flip(3), pixels, found.labels(), 0)
    several = len(views.labels(batch.labels))
    weights = [torch.rand(several, 2, 17, 17), torch.rand(several, 3, 9, 9)]
    logits = torch.randn(several, 10)
    loss, parts = prior_loss(options, batch, logits, weights, views, looks(), 7.0)
    maps = [weights[0][:, :, 0, 1:], weights[1].mean(2)]
    gaps = [(each / each.sum(-1, keepdim=True) - prior) ** 2 for each, prior in zip(maps, views.priors, strict=True)]
    attention = (2 * gaps[0].mean(-1).sum() + 20 * gaps[1].mean(-1).sum()) / 2
    soft = -(views.labels(batch.labels) * logits.log_softmax(1)).sum() / 2
    torch.testing.assert_close(parts["attention_loss"], attention)
    torch.testing.assert_close(parts["soft_loss"], soft)
    torch.testing.assert_close(loss, attention + 3 * soft + 0.5 * parts["variation_loss"])


def test_nothing_is_left_where_maps_are_their_blobs():
    priors = [torch.rand(1, 2, 16).softmax(-1)]
    weights = torch.cat([torch.full((1, 2, 1), 0.5), priors[0] / 2], -1)[:, :, None].expand(-1, -1, 17, -1)
    batch = JitteredBatch(*[torch.zeros(1, 3, 8, 8)] * 2, soft_labels(torch.zeros(1, 1).long(), torch.ones(1, 1), 4), 0)
    _, parts = prior_loss(AttentionPrior(), batch, torch.zeros(1, 4), [weights], Views([], priors), looks()[:1], 0.0)
    assert parts["attention_loss"].item() == pytest.approx(0, abs=1e-12)


class Deep(nn.Module):
    """A transformer of several blocks; `place` is that of its class token."""

    def __init__(self, depth=5, place="first"):
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 8, 2, 2), place
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.Sequential(*(_Block(8, 2) for _ in range(depth))), nn.Linear(8, 10)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        own = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([own, tokens] if self.place == "first" else [tokens, own], 1)
        return self.head(self.blocks(tokens)[:, 0])


def deep(**options):
    torch.manual_seed(0)
    module = Deep(**options).eval().requires_grad_(requires_grad=False)
    return replace(tiny_transformer(), module=module)


def test_blocks_of_the_deeper_half_have_weights_that_grow_with_depth():
    options, teacher = AttentionPrior(), deep()
    captured, found = options.captured(teacher)
    chosen = options._looks(teacher, captured, found, context())
    assert [look.weights for look in chosen] == [each.weights for each in find_attention(captured)[2:]]
    assert [look.weight for look in chosen] == pytest.approx([0.1 * 16**2 * part / 5 for part in (3, 4, 5)])
    assert [look.grid for look in chosen] == [KeyGrid(1, 4, 4)] * 3
    captured, found = options.captured(deep(depth=4))
    given = AttentionPrior(prior_weight=8.0)._looks(teacher, captured, found, context())
    assert [look.weight for look in given] == [4.0, 6.0, 8.0]  # half of four is the second


@parametrize_briefly(
    "weights,name,falls",
    [({"class_weight": 0.0}, "attention_loss", 0.95), ({"prior_weight": 0.0}, "soft_loss", 0.98)],
    1,
)
def test_images_are_looked_at_in_blobs_and_become_of_their_classes(weights, name, falls):
    options = {"iterations": 60, "warmup": 10, "variation_weight": 0.0, "jitter": 0, "images": 4}
    _, curves, _ = generated(tiny_transformer(), **options, **weights)
    assert sum(curves[name][-10:]) < falls * sum(curves[name][:10])


def test_labels_are_soft_and_losses_finite():
    made, curves, notes = generated(tiny_transformer())
    assert made.labels.shape == (6, 10)
    assert made.provenance["lr"] == 0.20
    assert notes == []
    assert all(torch.tensor(values).isfinite().all() for values in curves.values())


def test_windows_have_their_rate_and_a_note():
    made, _, notes = generated(tiny_transformers()["windows"])
    assert made.provenance["lr"] == 0.25
    assert notes == ["blocks without a class token: maps are means of the attention of all tokens"]


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (tiny_teacher(), "needs attention that capture takes apart, softmax and product with the values, and _TinyNet"),
        (replace(tiny_transformer(), classes=None), "makes images of classes, and the network has none"),
        (replace(deep(), input_size=(3, 9, 8)), "needs patches that fill the image, and Deep cuts 9 x 8 pixels into"),
        (
            deep(place="last"),
            "cannot tell where attention looks: block 3 of Deep has 17 keys, of images of 8 x 8 pixels; expected",
        ),
    ],
)
def test_networks_that_it_cannot_look_at_are_one_clear_line(teacher, reason):
    with pytest.raises(ZSQBenchError, match=rf"^generator 'attention_prior' {reason}[^\n]*$"):
        AttentionPrior(**SHORT).generate(teacher, context())


def test_keys_on_no_grid_are_one_clear_line(monkeypatch):
    monkeypatch.setattr("zsqbench.quant.key_grid", lambda *_: None)
    with pytest.raises(ZSQBenchError, match="has 17 keys, of images of 8 x 8 pixels; expected a grid of patches: take"):
        AttentionPrior(**SHORT).generate(tiny_transformer(), context())


def test_images_that_cannot_be_cut_are_refused_in_the_plan():
    network = zsqbench.methods.NetworkTraits((3, 1, 8), 10)
    with pytest.raises(ZSQBenchError, match="cuts images into four, and images of this network have 1 x 8 pixels"):
        AttentionPrior().resolved(network)
    assert AttentionPrior(views=0).resolved(network).jitter == 1


@pytest.mark.parametrize(
    "options", [{"narrowest": 0.3, "widest": 0.2}, {"least_logit": 4.0, "most_logit": 3.0}], ids=min
)
def test_intervals_begin_below_their_ends(options):
    first, second = options
    with pytest.raises(ValidationError, match=f"{first} {options[first]:g} is above {second} {options[second]:g}"):
        AttentionPrior(**options)


def test_work_counts_views():
    without = AttentionPrior(iterations=7, phases=2, views=0).work(2)
    assert AttentionPrior(iterations=7, phases=2).work(2) == without + 2.5 * STEP * 2 * 7 * 2
