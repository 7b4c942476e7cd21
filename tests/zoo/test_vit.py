import pytest
import torch

from zsqbench.quant import capture, find_attention, has_class_token, patch_size
from zsqbench.zoo.models import load_named
from zsqbench.zoo.vit import VisionTransformer


def attended(attention, x):
    """Attention written out, one head after the other."""
    rows = attention.qkv(x)
    width, heads = x.shape[-1], []
    for of_head in torch.arange(width).split(width // attention.heads):
        query, key, value = (rows[..., start + of_head] for start in (0, width, 2 * width))
        weights = (query @ key.mT / len(of_head) ** 0.5).softmax(-1)
        heads.append(weights @ value)
    return attention.proj(torch.cat(heads, -1))


def test_a_block_adds_attention_and_a_perceptron_of_normalised_tokens():
    block = load_named("vit", "none").module.blocks[0]
    x = torch.randn(2, 5, 32)
    after = x + attended(block.attention, block.norm1(x))
    expected = after + block.fc2(block.gelu(block.fc1(block.norm2(after))))
    torch.testing.assert_close(block(x), expected)


def test_the_class_token_alone_is_classified():
    network = VisionTransformer(side=8, patch=4, width=8, depth=1, heads=2, in_channels=3, classes=7).eval()
    x = torch.randn(2, 3, 8, 8)
    tokens = []
    network.norm.register_forward_hook(lambda *given: tokens.append(given[2]))
    logits = network(x)
    assert logits.shape == (2, 7)
    assert tokens[0].shape == (2, 5, 8)
    assert torch.equal(logits, network.classifier(tokens[0][:, 0]))


def test_positions_tell_patches_apart():
    network = load_named("vit").module
    x = torch.rand(1, 1, 16, 16)
    assert not torch.allclose(network(x), network(x.roll(4, 3)))


def test_it_holds_fewer_than_60_thousand_parameters():
    network = load_named("vit").module
    assert sum(parameter.numel() for parameter in network.parameters()) == 52_330


@pytest.mark.parametrize("weights", [None, "none"])
def test_capture_finds_its_attention_class_token_and_patches(weights):
    network = load_named("vit", weights).module
    captured = capture(network, (1, 16, 16))
    found = find_attention(captured)
    assert [(each.tokens, each.windows) for each in found] == [(17, 1)] * 4
    assert has_class_token(captured)
    assert patch_size(captured) == (4, 4)
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(captured(x), network(x))


def test_channels_of_normalised_tokens_differ_in_range():
    """As in published transformers: one step size for all of them is a compromise."""
    network = load_named("vit").module
    for block in network.blocks:
        sizes = block.norm1.weight.abs()
        assert sizes.max() > 5 * sizes.min()
