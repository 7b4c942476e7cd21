"""Attention of a transformer on images: similarities of patches in each block, and maps of the last block."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from zsqbench.synthesis.attention_maps import attention_map
from zsqbench.synthesis.patch_similarity import patch_entropy, patch_features, patch_spread

PATCH_IMAGES = 32
"""Largest number of images whose patches are compared: PSAQ-ViT's batch, whose images share density points."""
PAIRS = 2**23
"""Largest number of patch pairs in a block, unless one image has more: 32 images of 512 patches, one of 2896."""
MAP_IMAGES = 8
"""Largest number of images with a map of attention."""

CLASS_TOKEN = "class token"  # noqa: S105 - no password
"""Name of maps of the attention of a transformer's class token."""
ALL_TOKENS = "mean of all tokens"
"""Name of maps that are the mean over all tokens, of a transformer without a class token."""


@dataclass(frozen=True)
class MapForm:
    """The layout of the last block's attention over an image."""

    before: int
    """Tokens that come before the patches, as a class token does."""
    grid: tuple[int, int]
    """Patches along height and width, row by row."""

    @property
    def by(self) -> str:
        """The source of attention: the `class token`, or the `mean of all tokens`."""
        return CLASS_TOKEN if self.before else ALL_TOKENS


@dataclass(frozen=True)
class OpenAttention:
    """A network that also returns its attention."""

    network: nn.Module
    """For images [N, C, H, W] it returns a pair: its outputs, and the contexts of all blocks with the last weights.

    Contexts are weights times values before heads are joined, [N * windows, heads, tokens, channels] or [N * heads,
    tokens, channels]. Weights are the softmax of the last block, with keys in place of channels.
    """
    blocks: tuple[str, ...]
    """Paths of the modules that make the contexts, in execution order."""
    drop_first: bool
    """True if the first token of each window is left out of similarities, as PSAQ-ViT does."""
    form: MapForm | str
    """The layout of maps, or the reason why there are no maps."""


@dataclass(frozen=True)
class PatchSimilarity:
    """Similarity of the patches of an image in one block, by cosines of the attention's outputs for them."""

    layer: str
    """Path of the module that multiplies attention and values."""
    entropy: float
    """Differential entropy of the cosines of all ordered pairs, mean over images: the term of PSAQ-ViT."""
    spread: float
    """Standard deviation of the cosines of different patches of an image, mean over images."""
    images: int
    """Number of compared images, the first of the set."""


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of the last block's attention for the first images."""

    by: str
    grid: tuple[int, int]
    maps: Tensor = field(compare=False, repr=False)
    """Attention as parts of the attention to all patches, a mean over heads [n, rows, columns]."""


@dataclass(frozen=True)
class Attended:
    """The attention of one set of images."""

    similarities: tuple[PatchSimilarity, ...]
    maps: AttentionMaps | str
    """Maps, or the reason why there are none."""


def attend(opened: OpenAttention, batches: Iterable[Tensor]) -> Attended:
    """Run the network over batches of images [n, C, H, W], without gradients."""
    form = opened.form
    features: list[list[Tensor]] = [[] for _ in opened.blocks]
    maps: list[Tensor] = []
    images = 0
    with torch.no_grad():
        for batch in batches:
            device = next(chain(opened.network.parameters(), opened.network.buffers()), batch).device
            _, (*contexts, weights) = opened.network(batch.to(device))
            for kept, context in zip(features, contexts, strict=True):
                kept.append(patch_features(context, len(batch), drop_first=opened.drop_first).double().cpu())
            if isinstance(form, MapForm) and images < MAP_IMAGES:
                maps.append(attention_maps(weights, len(batch), form)[: MAP_IMAGES - images])
            images += len(batch)
    pairs = zip(opened.blocks, features, strict=True)
    similarities = tuple(_similarity(name, torch.cat(kept), images) for name, kept in pairs)
    return Attended(similarities, form if isinstance(form, str) else AttentionMaps(form.by, form.grid, torch.cat(maps)))


def attention_maps(weights: Tensor, images: int, form: MapForm) -> Tensor:
    """Maps [images, rows, columns] of weights [images, heads, tokens, keys] or [images * heads, tokens, keys]."""
    return attention_map(weights, images, form.before).mean(1).reshape(images, *form.grid).float().cpu()


def _similarity(name: str, features: Tensor, images: int) -> PatchSimilarity:
    """The similarity of features [images * windows, patches, channels], for as many images as fit."""
    windows, patches = len(features) // images, features.shape[1]
    count = max(1, min(images, PAIRS // (windows * patches**2)))
    some = features[: count * windows]
    return PatchSimilarity(name, float(patch_entropy(some, count)), float(patch_spread(some, count)), count)
