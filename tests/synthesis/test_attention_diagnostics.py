import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.methods import open_attention
from zsqbench.synthesis import (
    ALL_TOKENS,
    MapForm,
    OpenAttention,
    attention_diagnostics,
    patch_entropy,
    patch_features,
)
from zsqbench.synthesis.attention_diagnostics import attend, attention_maps
from zsqbench.testing.networks import tiny_transformers

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Given(nn.Module):
    """A network that has this context and these weights of each image."""

    def __init__(self, context, weights):
        super().__init__()
        self.context, self.weights = context, weights

    def forward(self, images):
        numbers = images.flatten(1)[:, 0].long()
        return images, (self.context[numbers], self.weights[numbers])


def given(context, weights=None, form="no maps"):
    """Attention of images that are their numbers, [N, 1, 1, 1]."""
    opened = OpenAttention(Given(context, context if weights is None else weights), ("block",), False, form)
    return opened, torch.arange(len(context)).float().view(-1, 1, 1, 1)


def test_similarities_are_cosines_of_what_heads_give_on_average():
    # two heads whose means are directions at 0 and at 60 degrees
    half = 0.5 * 3**0.5
    heads = torch.tensor([[[0.0, 0.0], [0.5, half]], [[2.0, 0.0], [0.5, half]]])
    opened, images = given(torch.stack([heads, heads.flip(1)]))
    (found,) = attend(opened, [images]).similarities
    assert (found.layer, found.images) == ("block", 2)
    assert found.spread == pytest.approx(0.0, abs=1e-7)  # one pair in each image
    assert found.entropy == pytest.approx(patch_entropy(heads.mean(0)[None].double(), 1).item())


@pytest.mark.parametrize("name", ["a class token", "windows"])
def test_entropies_are_those_that_psaq_vit_maximises(name):
    opened = open_attention(tiny_transformers()[name])
    _, values = opened.network(IMAGES)
    found = attend(opened, [IMAGES]).similarities
    for each, context in zip(found, values[:-1], strict=True):
        features = patch_features(context, len(IMAGES), drop_first=True)
        assert each.entropy == pytest.approx(patch_entropy(features.double(), len(IMAGES)).item())


@pytest.mark.parametrize("name", ["a class token", "windows"])
def test_images_are_one_set_whatever_the_batches(name):
    opened = open_attention(tiny_transformers()[name])
    whole, apart = (attend(opened, IMAGES.split(size)) for size in (12, 5))
    for ours, theirs in zip(whole.similarities, apart.similarities, strict=True):
        assert (ours.entropy, ours.spread) == pytest.approx((theirs.entropy, theirs.spread), abs=1e-4)
    if name == "a class token":
        torch.testing.assert_close(whole.maps.maps, apart.maps.maps)
        assert whole.maps.maps.shape == (8, 4, 4)


def test_patches_that_are_all_alike_have_no_spread_and_others_do():
    alike, apart = torch.ones(2, 1, 6, 4), torch.randn(2, 1, 6, 4)
    spreads = [attend(opened, [images]).similarities[0].spread for opened, images in map(given, (alike, apart))]
    cosines = functional.cosine_similarity(apart[:, 0, :, None], apart[:, 0, None], dim=3)
    pairs = torch.stack([each[*torch.triu_indices(6, 6, 1)] for each in cosines])
    assert spreads == pytest.approx([0.0, pairs.std(1, correction=0).mean().item()], abs=1e-6)


def test_so_many_images_are_compared_as_have_room(monkeypatch):
    opened, images = given(torch.randn(5, 1, 6, 4))
    for pairs, expected in ((36 * 5, 5), (36 * 2 + 1, 2), (1, 1)):
        monkeypatch.setattr(attention_diagnostics, "PAIRS", pairs)
        assert attend(opened, [images]).similarities[0].images == expected


def test_the_class_token_looks_at_patches_and_heads_are_averaged():
    # two heads, a class token and two patches; rows are who looks
    weights = torch.tensor([[[0.2, 0.8, 0.0], [9, 9, 9], [9, 9, 9]], [[0.4, 0.2, 0.4], [9, 9, 9], [9, 9, 9]]])
    for each in (weights[None], weights):  # heads in a dimension of their own, and with images
        maps = attention_maps(each, 1, MapForm(1, (1, 2)))
        torch.testing.assert_close(maps, torch.tensor([[[2 / 3, 1 / 3]]]))


def test_without_a_class_token_all_tokens_look():
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])[None]
    torch.testing.assert_close(attention_maps(weights, 1, MapForm(0, (2, 1))), torch.tensor([[[0.75], [0.25]]]))


def test_what_each_image_looks_at_is_its_own():
    weights = torch.softmax(torch.randn(3, 1, 4, 4), -1)
    opened, images = given(torch.randn(3, 1, 4, 2), weights, MapForm(0, (2, 2)))
    maps = attend(opened, images.split(2)).maps
    assert (maps.by, maps.grid) == (ALL_TOKENS, (2, 2))
    torch.testing.assert_close(maps.maps, weights[:, 0].mean(1).view(3, 2, 2))


def test_why_there_are_no_maps_is_kept():
    opened, images = given(torch.randn(2, 1, 4, 2), form="it has none")
    assert attend(opened, [images]).maps == "it has none"
