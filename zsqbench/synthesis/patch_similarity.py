"""Diversity of image patches in a transformer: PSAQ-ViT's entropy of their similarities."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SHIFT = 1e-4
"""Number that is added to densities before and within the logarithm."""

_SHORTEST = 1e-8
"""Lower bound of the length of features, as in torch's cosine similarity."""

_REACH = {torch.float32: 6.0, torch.float64: 9.0}
"""Bandwidths beyond which a kernel is negligible in this precision: below 2e-8 and 3e-18 of its height."""

_LEAST = -44.0
"""The smallest exponent of a kernel. With much smaller ones a CPU takes ten times as long."""


def patch_features(context: Tensor, images: int, *, drop_first: bool) -> Tensor:
    """Outputs of attention for patches [images * windows, patches, channels], a mean over heads.

    `context` are weights times values, before heads are joined: [images * windows, heads, tokens, channels], or [images
    * heads, tokens, channels]. With `drop_first` the first token of each window is dropped.
    """
    if context.dim() == 3:  # noqa: PLR2004 - no dimension of its own for heads
        context = context.reshape(images, -1, *context.shape[1:])
    return context.mean(1)[:, int(drop_first) :]


def patch_entropy(features: Tensor, images: int, bandwidth: float = 0.01, points: int = 10) -> Tensor:
    """The differential entropy of the similarities of patches, as the mean over images: PSAQ-ViT's term of one block.

    `features` are [images * windows, patches, channels], with the windows of an image side by side; similarities of all
    windows are pooled. Densities are sums of Gaussian kernels of all ordered pairs. They are measured at `points`
    points, equally spaced from the smallest to the largest similarity of all images. The entropy is a trapezoidal sum
    over them. On most maps ten points are many bandwidths apart. Then most pairs are near no point and have no
    gradient, as in the release. Densities above 1 make entropies below 0.

    Differentiable once with respect to features; the points are constants. In float32 at least.
    """
    entropy: Tensor = _Entropy.apply(features, images, bandwidth, points)
    return entropy


def patch_spread(features: Tensor, images: int) -> Tensor:
    """The standard deviation of the cosines of different patches of an image, as the mean over images.

    `features` as in `patch_entropy`. It has neither points nor bandwidth, so it depends little on the number of images.
    NaN where a window has a single patch.
    """
    unit = functional.normalize(features, dim=2, eps=_SHORTEST)
    first, second = torch.triu_indices(unit.shape[1], unit.shape[1], 1, device=unit.device)
    cosines = (unit @ unit.mT)[:, first, second].reshape(images, -1)
    return (cosines - cosines.mean(1, keepdim=True)).square().mean(1).sqrt().mean()


class _Entropy(torch.autograd.Function):
    """The gradient is computed with the value, so only one tensor of the features' size is kept for it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, images: int, bandwidth: float, points: int) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            exact = features.to(torch.promote_types(features.dtype, torch.float32))
            lengths = exact.square().sum(2, keepdim=True).sqrt_().clamp_min_(_SHORTEST)
            unit = exact / lengths
            cosines = (unit @ unit.mT).flatten(1)
            upper, lower, counts = _pairs(exact.shape[1], cosines)
            rows = cosines.index_select(1, upper).view(images, -1)
            density = _Density(rows, counts.repeat(len(cosines) // images), bandwidth, points)
            entropy, slopes = _entropy(density.values, density.step)
            if ctx.needs_input_grad[0]:
                towards = density.gradient(slopes).view(len(cosines), -1)
                cosines.index_copy_(1, upper, towards).index_copy_(1, lower, towards)
                gradient = 2 * (cosines.view(len(unit), *unit.shape[1:2] * 2) @ unit)  # both of a pair move
                gradient -= unit * (unit * gradient).sum(2, keepdim=True)
                ctx.save_for_backward((gradient / lengths).to(features.dtype))
        return entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def _pairs(count: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of pairs (i, j) with i <= j in a flattened N x N matrix, those of (j, i), and the counts of pairs."""
    first, second = torch.triu_indices(count, count, device=like.device)
    return first * count + second, second * count + first, (2 - (first == second).to(torch.int)).to(like.dtype)


class _Density:
    """Densities [images, points] of rows of similarities [images, pairs], and their gradients.

    Each similarity counts `counts` times [pairs].
    """

    def __init__(self, rows: Tensor, counts: Tensor, bandwidth: float, points: int) -> None:
        self._counts, self._bandwidth, self._points = counts, bandwidth, points
        low, high = torch.aminmax(rows)
        self._rows = rows - low
        self.step = (high - low) / (points - 1)
        self._height = 1 / (bandwidth * math.sqrt(2 * math.pi) * counts.sum())
        self._near: list[tuple[Tensor, Tensor, Tensor]] = []
        self._all: Tensor | None = None
        self.values = (self._of_near() if self._are_far_apart() else self._of_all()) * self._height

    def gradient(self, slopes: Tensor) -> Tensor:
        """The gradient to each similarity [images, pairs], from the gradient to densities [images, points]."""
        if self._all is None:
            total = torch.zeros_like(self._rows)
            for distance, kernel, place in self._near:
                total.addcmul_(distance * kernel, slopes.flatten().index_select(0, place).view_as(total))
        else:  # distances are similarities less points
            places = torch.arange(self._points, device=slopes.device, dtype=slopes.dtype) * self.step
            weight, at = (torch.stack([slopes, slopes * places], 1) @ self._all).unbind(1)
            total = self._rows * weight - at
        return total.mul_(-self._height / self._bandwidth**2)

    def _are_far_apart(self) -> bool:
        """True if a kernel reaches only the neighbouring points, and this is known on the CPU.

        A GPU would have to be waited for, and its sums have no fixed order.
        """
        return self._rows.device.type == "cpu" and float(self.step) >= _REACH[self._rows.dtype] * self._bandwidth

    def _of_all(self) -> Tensor:
        kernels = self._rows.new_empty(len(self._rows), self._points, self._rows.shape[1])
        for number, kernel in enumerate(kernels.unbind(1)):
            self._kernel(torch.sub(self._rows, number * self.step, out=kernel))
        self._all = kernels
        return kernels @ self._counts

    def _of_near(self) -> Tensor:
        """Each similarity counts at the point below and at the point above: a quarter of the work."""
        images = len(self._rows)
        below = (self._rows / self.step).floor_().clamp_(max=self._points - 2)
        distance = self._rows - below * self.step
        place = below.long().add_(torch.arange(images)[:, None] * self._points).flatten()
        total = self._rows.new_zeros(images * self._points)
        for beyond in (distance, distance - self.step):
            kernel = self._kernel(beyond.clone())
            total.index_add_(0, place, (kernel * self._counts).flatten())
            self._near.append((beyond, kernel, place))
            place = place + 1
        return total.view(images, self._points)

    def _kernel(self, distance: Tensor) -> Tensor:
        """Changes its argument."""
        return distance.mul_(distance).mul_(-1 / (2 * self._bandwidth**2)).clamp_min_(_LEAST).exp_()


def _entropy(density: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The mean entropy of densities [images, points] at points this far apart, and its slopes [images, points]."""
    shifted = density + SHIFT
    weights = torch.full_like(density, 1 / len(density)) * step
    weights[:, [0, -1]] /= 2
    logarithm = shifted.log()
    return -(weights * shifted * logarithm).sum(), -weights * (logarithm + 1)
