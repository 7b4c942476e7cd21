from dataclasses import dataclass

import pytest
import torch
from torch import nn

from zsqbench.quant import (
    KeyGrid,
    also_returning,
    capture,
    find_attention,
    has_class_token,
    inspect,
    key_grid,
    patch_size,
    prepare,
)
from zsqbench.scheme import parse_scheme
from zsqbench.testing import tiny_teacher, tiny_transformer
from zsqbench.testing.networks import tiny_transformers

SIZE = (3, 8, 8)


class Attending(nn.Module):
    """Attention on the pixels of an image, in a form that a test gives."""

    def __init__(self, form):
        super().__init__()
        self.form, self.patches, self.head = form, nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.form(tokens).mean(1))


def by_heads(tokens):
    """[N, heads, tokens, 4]"""
    split = tokens.unflatten(2, (2, 4)).transpose(1, 2)
    return (torch.softmax(split @ split.mT, -1) @ split).transpose(1, 2).flatten(2)


def by_rows(tokens):
    """[N * heads, tokens, 4], with dropout between, as torch's own attention has it"""
    split = tokens.reshape(tokens.shape[0], 16, 2, 4).transpose(1, 2).reshape(2 * tokens.shape[0], 16, 4)
    weights = nn.functional.dropout(torch.bmm(split, split.mT).softmax(dim=2), 0.1, training=False)
    return torch.bmm(weights, split).reshape(tokens.shape[0], 2, 16, 4).transpose(1, 2).reshape(tokens.shape[0], 16, 8)


def by_einsum(tokens):
    weights = nn.functional.softmax(torch.einsum("nid,njd->nij", tokens, tokens), dim=-1)
    return torch.einsum("nij,njd->nid", weights, tokens)


def fused(tokens):
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def of_channels(tokens):
    """A softmax whose product is no attention of tokens."""
    return tokens * tokens.softmax(2)


def pooling(tokens):
    """One token looks at all."""
    return torch.matmul((tokens[:, :1] @ tokens.mT).softmax(-1), tokens)


@pytest.mark.parametrize(("form", "shape"), [(by_heads, (2, 2, 16, 4)), (by_rows, (4, 16, 4)), (by_einsum, (2, 16, 8))])
def test_attention_is_found_by_its_structure(form, shape):
    (found,) = find_attention(capture(Attending(form), SIZE))
    assert found.context.meta["shape"] == shape
    assert found.weights.meta["shape"] == (*shape[:-1], 16)
    assert (found.tokens, found.windows) == (16, 1)


@pytest.mark.parametrize("form", [of_channels, pooling])
def test_what_is_no_attention_of_tokens_is_not_found(form):
    assert find_attention(capture(Attending(form), SIZE)) == []


@pytest.mark.parametrize(("form", "heads"), [(by_heads, 2), (by_rows, 2), (by_einsum, 1)])
def test_heads_and_keys_are_counted_whatever_their_form(form, heads):
    (found,) = find_attention(capture(Attending(form), SIZE))
    assert (found.heads, found.keys) == (heads, 16)


@dataclass(frozen=True)
class Keys:
    keys: int
    windows: int = 1


@pytest.mark.parametrize(
    ("keys", "sides", "patch", "expected"),
    [
        (Keys(17), (8, 8), (2, 2), (1, 4, 4)),
        (Keys(16), (8, 8), (2, 2), (0, 4, 4)),
        (Keys(18), (8, 8), (2, 2), (2, 4, 4)),  # a distilled one
        (Keys(16), (4, 16), (1, 4), (0, 4, 4)),  # patches that are no squares
        (Keys(49), (224, 224), (4, 4), (0, 7, 7)),  # keys are pooled: fewer than patches
        (Keys(50), (224, 224), None, (1, 7, 7)),
        (Keys(8), (4, 8), None, (0, 2, 4)),
        (Keys(9), (4, 8), None, (1, 2, 4)),
        (Keys(10), (4, 8), None, None),
        (Keys(15), (8, 8), (2, 2), None),
        (Keys(32), (8, 8), (2, 2), None),  # as many tokens of another kind as patches
        (Keys(49, windows=64), (224, 448), (4, 4), (0, 7, 7)),
        (Keys(50, windows=64), (224, 224), (4, 4), None),
        (Keys(1), (8, 8), None, (0, 1, 1)),
    ],
)
def test_keys_lie_on_a_grid_of_the_image_or_of_a_window(keys, sides, patch, expected):
    assert key_grid(keys, sides, patch) == (expected and KeyGrid(*expected))


def test_blocks_and_windows_are_found_in_order():
    networks = {name: capture(each.module, SIZE) for name, each in tiny_transformers().items()}
    of_tokens, of_windows = (find_attention(networks[name]) for name in ("a class token", "windows"))
    assert [(each.tokens, each.windows) for each in of_tokens] == [(17, 1), (17, 1)]
    assert [(each.tokens, each.windows) for each in of_windows] == [(4, 4)]
    assert [has_class_token(each) for each in networks.values()] == [True, False]


def test_a_class_token_that_comes_last_or_a_token_of_the_image_is_none():
    class Last(Attending):
        def __init__(self, first):
            super().__init__(by_heads)
            self.token, self.first = nn.Parameter(torch.randn(1, 1, 8)), first

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            own = self.token.expand(images.shape[0], -1, -1) if self.first != "mean" else tokens.mean(1, keepdim=True)
            joined = [tokens, own] if self.first == "last" else [own, tokens]
            return self.head(self.form(torch.cat(joined, 1)[:, :16]).mean(1))

    assert [has_class_token(capture(Last(name), SIZE)) for name in ("class", "last", "mean")] == [True, False, False]


@pytest.mark.parametrize(
    ("layer", "patch"),
    [
        (nn.Conv2d(3, 8, (2, 4), (2, 4)), (2, 4)),
        (nn.Conv2d(3, 8, 3, 2, 1), None),
        (nn.Conv2d(3, 8, 4, 4, 2), None),
        (nn.Conv2d(3, 8, 4, 4, "valid"), (4, 4)),
    ],
)
def test_patches_are_what_the_first_convolution_cuts(layer, patch):
    assert patch_size(capture(nn.Sequential(layer, nn.Conv2d(8, 2, 1)), SIZE)) == patch


def test_a_captured_network_returns_what_it_did_and_what_is_asked_for():
    teacher = tiny_transformer()
    images = torch.randn(3, *SIZE)
    captured = capture(teacher.module, SIZE)
    found = find_attention(captured)
    nodes = [node for each in found for node in (each.weights, each.context)]
    outputs, values = also_returning(captured, nodes)(images)
    torch.testing.assert_close(outputs, teacher.module(images))
    assert [tuple(value.shape) for value in values] == [(3, 2, 17, 17), (3, 2, 17, 4)] * 2
    torch.testing.assert_close(values[0].sum(-1), torch.ones(3, 2, 17))


@pytest.mark.parametrize("scheme", ["hw/w4a4", "hw_strict/w8a8", "qdq/w4a4"])
def test_attention_and_patches_are_found_in_students_too(scheme):
    for teacher in tiny_transformers().values():
        student = prepare(teacher.module, parse_scheme(scheme), SIZE)
        captured = capture(teacher.module, SIZE)
        assert len(find_attention(student)) == len(find_attention(captured))
        assert (patch_size(student), has_class_token(student)) == (patch_size(captured), has_class_token(captured))


def test_an_inspection_says_what_there_is_of_attention():
    scheme = parse_scheme("hw/w4a4")
    found = inspect(tiny_transformer().module, scheme, SIZE)
    assert (found.blocker, found.attention, found.patch) == (None, 2, (2, 2))
    found = inspect(tiny_teacher().module, scheme, SIZE)
    assert (found.attention, found.patch) == (0, ())
