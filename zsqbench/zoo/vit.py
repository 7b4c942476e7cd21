"""A small network like ViT (Dosovitskiy et al., 2021): patches, a class token, blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional

MLP_RATIO = 4
"""Hidden channels of a block's perceptron, relative to its width."""


class SelfAttention(nn.Module):
    """Each token attends to all tokens. Queries, keys and values come from one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] to the same."""
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        x = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(count, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then a perceptron. Each reads normalised tokens, and its result is added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches and a class token with learned positions, blocks, a last normalisation, a classifier on the class token.

    `side` is the side of the images, a multiple of `patch`. `width` is a multiple of `heads`.
    """

    def __init__(
        self, side: int, patch: int, width: int, depth: int, heads: int, *, in_channels: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, side, side] to logits [N, classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.classifier(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]
