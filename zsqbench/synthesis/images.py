"""What generators do to images between the pixels that they optimise and the network: blur, flip, crop, clamp."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmoothedCrops:
    """DGH's pipeline: images are blurred crops of larger ones; values that no pixel can have are cut off."""

    size: tuple[int, int]
    """Height and width of the images."""
    low: Tensor
    """Smallest valid values, [1, C, 1, 1]."""
    high: Tensor
    line: tuple[float, ...]
    """The blur's kernel in one direction, see `gaussian_line`; (1.0,) is none."""

    def augment(self, pixels: Tensor, *, flip: bool, top: int, left: int) -> Tensor:
        """The images of one step: flipped from left to right or not, blurred, and cropped at a corner."""
        pixels = pixels.flip(3) if flip else pixels
        return self._cut(pixels, top, left)

    def finalise(self, pixels: Tensor) -> Tensor:
        """The images as they are given away: blurred centre crops."""
        top, left = (round((whole - part) / 2) for whole, part in zip(pixels.shape[2:], self.size, strict=True))
        return self._cut(pixels, top, left)

    def _cut(self, pixels: Tensor, top: int, left: int) -> Tensor:
        crop = blur(pixels, self.line)[:, :, top : top + self.size[0], left : left + self.size[1]]
        return clamp_straight_through(crop, self.low, self.high)


def gaussian_line(size: int, sigma: float) -> tuple[float, ...]:
    """A Gaussian at an odd number of whole offsets, normalised: its products are the square kernel."""
    values = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-(size // 2), size // 2 + 1)]
    return tuple(value / sum(values) for value in values)


def blur(images: Tensor, line: tuple[float, ...]) -> Tensor:
    """Convolve images [N, C, H, W] with a symmetric kernel, in one direction and in the other; zeros lie around them.

    By sums of shifted images: on a CPU a fifth of a grouped convolution's time, and in the images' own precision under
    autocast, too.
    """
    blurred: Tensor = _Blur.apply(images, line)
    return blurred


def clamp_straight_through(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamped values, whose gradients pass as if they had not been: pixels outside can come back."""
    clamped: Tensor = _StraightThroughClamp.apply(images, low, high)
    return clamped


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, images: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.clamp(images, low, high)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Blur(torch.autograd.Function):
    """The kernel is symmetric, so a gradient goes back by the same blur."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, line: tuple[float, ...]) -> Tensor:
        ctx.line = line
        return _convolve(images, line)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _convolve(gradients[0], ctx.line), None


def _convolve(images: Tensor, line: tuple[float, ...]) -> Tensor:
    reach = len(line) // 2
    for dim in (2, 3):
        result = images * line[reach]
        for offset in range(1, min(reach + 1, images.shape[dim])):
            rest = images.shape[dim] - offset
            weight = line[reach + offset]
            result.narrow(dim, offset, rest).add_(images.narrow(dim, 0, rest), alpha=weight)
            result.narrow(dim, 0, rest).add_(images.narrow(dim, offset, rest), alpha=weight)
        images = result
    return images
