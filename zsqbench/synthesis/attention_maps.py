"""Maps of attention, and blobs as their targets, after the text of SARDFQ (Zhong et al., ICCV 2025)."""

import torch
from torch import Tensor

_LEAST = 1e-12
"""Lower bound of the attention to all patches together."""


def attention_map(weights: Tensor, images: int, before: int) -> Tensor:
    """The attention to each patch, as a part of the attention to all patches: [images, heads, patches].

    `before` tokens, such as a class token, come before the patches. The map is that of the first of them. With `before`
    0 it is the mean over all tokens, and over the windows of an image. `weights` are a softmax [images * windows,
    heads, tokens, keys], or [images * heads, tokens, keys]. In float32 at least.
    """
    if weights.dim() == 3:  # noqa: PLR2004 - no dimension of its own for heads
        weights = weights.reshape(images, -1, *weights.shape[1:])
    exact = weights.to(torch.promote_types(weights.dtype, torch.float32))
    rows = exact[:, :, 0, before:] if before else exact.mean(2)
    maps = rows.reshape(images, -1, *rows.shape[1:]).mean(1)
    parts: Tensor = maps / maps.sum(-1, keepdim=True).clamp_min(_LEAST)
    return parts


def gaussian_mixtures(chances: Tensor, height: int, width: int, spread: tuple[float, float]) -> Tensor:
    """Mixtures of Gaussians on a grid, as parts of 1: [..., height * width].

    `chances` are uniform numbers [..., 1 + 4 K]. The first gives the number of components, 1 to K. Each component has
    the same part of the sum. Four more give each component's centre, from the first row and column to the last, and its
    width along both, within `spread`, in parts of the grid's sides.
    """
    components = chances[..., 1:].reshape(*chances.shape[:-1], -1, 4)
    most = components.shape[-2]
    count = (chances[..., :1] * most).floor().clamp_max(most - 1) + 1
    row, column, tall, wide = components.unbind(-1)
    down, across = _lines(row, tall, height, spread), _lines(column, wide, width, spread)
    shares = (torch.arange(most, device=chances.device) < count) / count
    return (down.mT @ (shares[..., None] * across)).flatten(-2)


def map_loss(maps: Tensor, priors: Tensor) -> Tensor:
    """The sum over heads of the mean squared difference of maps and priors [images, heads, patches]: [images]."""
    gaps: Tensor = (maps - priors).square().mean(-1).sum(-1)
    return gaps


def soft_labels(labels: Tensor, logits: Tensor, classes: int) -> Tensor:
    """The softmax of these logits at these classes and of zeros at all others: [images, classes].

    `labels` are int64 [images, wanted]. `logits` [images, wanted] are at least 0; 0 has no effect. The largest counts
    where a class is wanted twice.
    """
    wanted = logits.new_zeros(len(labels), classes)
    return wanted.scatter_reduce(1, labels, logits, "amax").softmax(1)


def _lines(centre: Tensor, width: Tensor, size: int, spread: tuple[float, float]) -> Tensor:
    """Gaussians along one side, as parts of 1 each: [..., size]."""
    places = torch.arange(size, device=centre.device, dtype=centre.dtype)
    deviation = (spread[0] + (spread[1] - spread[0]) * width) * size
    away = (places - (centre * (size - 1))[..., None]) / deviation[..., None]
    return (-away.square() / 2).softmax(-1)
