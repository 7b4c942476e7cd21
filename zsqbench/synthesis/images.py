"""Operations of generators on images between the optimised pixels and the network: blur, flip, crop, clamp."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TRIES = 10
"""Number of boxes that torchvision draws before it gives up."""


@dataclass(frozen=True)
class SmoothedCrops:
    """DGH's pipeline: images are blurred crops of larger images, with pixels clamped to the valid range."""

    size: tuple[int, int]
    """Height and width of the images."""
    low: Tensor
    """Smallest valid values, [1, C, 1, 1]."""
    high: Tensor
    line: tuple[float, ...]
    """The blur's kernel in one direction, see `gaussian_line`; (1.0,) disables the blur."""

    def augment(self, pixels: Tensor, *, flip: bool, top: int, left: int) -> Tensor:
        """The images of one step: perhaps flipped from left to right, blurred, and cropped at a corner."""
        if not flip:
            return self._cut(pixels, top, left)
        return self._cut(pixels, top, pixels.shape[3] - self.size[1] - left).flip(3)  # the blur is symmetric

    def finalize(self, pixels: Tensor) -> Tensor:
        """The resulting images: blurred centre crops."""
        top, left = (round((whole - part) / 2) for whole, part in zip(pixels.shape[2:], self.size, strict=True))
        return self._cut(pixels, top, left)

    def _cut(self, pixels: Tensor, top: int, left: int) -> Tensor:
        return clamp_straight_through(blur(pixels, self.line, (top, left, *self.size)), self.low, self.high)


def gaussian_line(size: int, sigma: float) -> tuple[float, ...]:
    """A normalised Gaussian at an odd number of whole offsets. Its outer product is the square kernel."""
    values = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-(size // 2), size // 2 + 1)]
    return tuple(value / sum(values) for value in values)


def blur(images: Tensor, line: tuple[float, ...], crop: tuple[int, int, int, int] | None = None) -> Tensor:
    """Convolve images [N, C, H, W] with a symmetric kernel, in one direction and then the other, with zero padding.

    If a crop (top, left, height, width) is given, only its own pixels are computed. The convolution is a sum of shifted
    images. On a CPU it takes a fifth of a grouped convolution's time. It keeps the images' own precision under
    autocast.
    """
    blurred: Tensor = _Blur.apply(images, line, crop or (0, 0, *images.shape[2:]))
    return blurred


@dataclass(frozen=True)
class Crops:
    """A box of each of N images with its flip; positions in pixels, float32 [N]."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    """From left to right; bool [N]."""


def random_crops(
    shape: Sequence[int], smallest: float, rng: torch.Generator, ratios: tuple[float, float] = (3 / 4, 4 / 3)
) -> Crops:
    """Boxes as torchvision's RandomResizedCrop draws them, one for each image of this shape [N, C, H, W], half flipped.

    A box has from `smallest` to all of the image's area, and a ratio of width to height between `ratios`. Where ten
    tries do not fit into the image, it is the largest central box with a valid ratio. All are drawn at once, on the
    generator's device.
    """
    count, _, rows, columns = shape
    areas, shapes, tops, lefts = torch.rand(4, count, _TRIES, generator=rng, device=rng.device)
    flipped = torch.rand(count, generator=rng, device=rng.device) < 0.5  # noqa: PLR2004 - a half
    area = rows * columns * (smallest + (1 - smallest) * areas)
    low, high = (math.log(ratio) for ratio in ratios)
    ratio = torch.exp(low + (high - low) * shapes)
    width, height = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first = fits.float().argmax(1, keepdim=True)
    found = fits.any(1)
    bounded = min(max(columns / rows, ratios[0]), ratios[1])
    whole = min(rows, round(columns / bounded)), min(columns, round(rows * bounded))
    height, width = (
        torch.where(found, sides.gather(1, first)[:, 0], float(side))
        for sides, side in zip((height, width), whole, strict=True)
    )
    top, left = (
        torch.where(found, (places.gather(1, first)[:, 0] * (room + 1)).floor(), (room / 2).floor())
        for places, room in ((tops, rows - height), (lefts, columns - width))
    )
    return Crops(top, left, height, width, flipped)


def resized_crops(images: Tensor, crops: Crops) -> Tensor:
    """Each image's box enlarged to the image's size, bilinear as in torchvision, and flipped where its crop says so.

    It uses two matrix products for each image, with all its channels side by side, instead of a loop over images. On a
    CPU this takes a third of the time of products that broadcast. Gradients are deterministic on a GPU too.
    """
    count, channels, height, width = images.shape
    flips = torch.zeros_like(crops.flipped), crops.flipped
    rows, columns = (
        _enlargement(first, side, size, flipped)
        for first, side, size, flipped in zip(
            (crops.top, crops.left), (crops.height, crops.width), images.shape[2:], flips, strict=True
        )
    )
    with torch.autocast(images.device.type, enabled=False):  # half precision would change the pixels
        lines = images.transpose(1, 2).reshape(count, height, channels * width)
        enlarged = torch.bmm(rows.to(images), lines).view(count, height * channels, width)
        crops_of = torch.bmm(enlarged, columns.to(images).mT).view(count, height, channels, width)
    return crops_of.transpose(1, 2).contiguous()


def clamp_straight_through(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamped values with the gradients of unclamped ones, so pixels outside the range can return."""
    clamped: Tensor = _StraightThroughClamp.apply(images, low, high)
    return clamped


def _enlargement(first: Tensor, side: Tensor, size: int, flipped: Tensor) -> Tensor:
    """Matrices [N, size, size] that enlarge a part of a line of pixels to the whole line, by interpolation."""
    places = torch.arange(size, device=first.device, dtype=first.dtype)
    targets = torch.where(flipped[:, None], places.flip(0), places)
    sources = (targets + 0.5) * (side / size)[:, None] - 0.5
    sources = torch.minimum(sources.clamp_min(0), side[:, None] - 1) + first[:, None]
    return (1 - (sources[:, :, None] - places).abs()).clamp_min(0)


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, images: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.maximum(images, low).clamp_max_(high)  # vectorised, unlike a clamp between two tensors

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Blur(torch.autograd.Function):
    """The kernel is symmetric, so the backward pass is the same blur, from the crop's place to all pixels."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, line: tuple[float, ...], crop: tuple[int, int, int, int]) -> Tensor:
        ctx.line, ctx.crop, ctx.shape = line, crop, images.shape
        top, left, height, width = crop
        return _convolve(_convolve(images, line, 2, top, height), line, 3, left, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (top, left, *_), (height, width) = ctx.crop, ctx.shape[2:]
        return _convolve(_convolve(gradients[0], ctx.line, 3, -left, width), ctx.line, 2, -top, height), None, None


def _convolve(images: Tensor, line: tuple[float, ...], dim: int, first: int, length: int) -> Tensor:
    """Convolve along one dimension: `length` values from `first` on. Values outside are zero."""
    reach, there = len(line) // 2, images.shape[dim]
    inside = 0 <= first <= there - length
    if inside:
        result = images.narrow(dim, first, length) * line[reach]
    else:
        result = images.new_zeros(*images.shape[:dim], length, *images.shape[dim + 1 :])
    for offset in range(-reach, reach + 1):
        low, high = max(0, -first - offset), min(length, there - first - offset)
        if low < high and not (inside and offset == 0):
            part = images.narrow(dim, first + offset + low, high - low)
            result.narrow(dim, low, high - low).add_(part, alpha=line[reach + offset])
    return result


def total_variation(images: Tensor) -> Tensor:
    """Norms of the differences of neighbours, summed over four directions, for the whole batch (TV_l2)."""
    right, down = images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]
    falling, rising = images[..., 1:, 1:] - images[..., :-1, :-1], images[..., 1:, :-1] - images[..., :-1, 1:]
    norms: Tensor = right.norm() + down.norm() + falling.norm() + rising.norm()
    return norms
