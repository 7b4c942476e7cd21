"""The affine grid 0 .. 2^b - 1: q = clamp(round(x / scale) + zero_point), x' = (q - zero_point) * scale.

Everything broadcasts: a scale of shape [] quantizes per tensor, one of shape [C, 1, 1, 1] per channel (see `along`).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """The parameters of an affine grid; `zero_point` holds integers in floating point."""

    scale: Tensor
    zero_point: Tensor


def levels(bits: int) -> int:
    """The largest code of the grid."""
    return (1 << bits) - 1


def affine_parameters(low: Tensor, high: Tensor, bits: int) -> Affine:
    """The grid whose ends are (up to the rounding of the zero point) low and high, element by element.

    Zero is a point of the grid only where low <= 0 <= high. A range of one value gets a grid that holds this value.
    """
    scale = (high - low) / levels(bits)
    tiny = torch.finfo(low.dtype).tiny  # x / scale overflows below it; comparisons leave NaN as it is, to be found
    constant = torch.maximum(low.abs(), high.abs())
    constant = torch.where(constant < tiny, torch.ones_like(constant), constant)
    scale = torch.where(scale < tiny, constant, scale)
    return Affine(scale, torch.round(-low / scale))


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes of x on the grid, integers 0 .. 2^b - 1 in floating point; half is rounded to even."""
    return (x / scale).round_().add_(zero_point).clamp_(0, levels(bits))


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values that codes (of any dtype) stand for."""
    return (codes.to(scale.dtype) - zero_point).mul_(scale)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """X rounded to the grid; the gradient passes the rounding straight through and is zero where x was clamped.

    Scale (and zero point) get the gradient that follows from this, as in BRECQ and QDrop (no LSQ scaling).
    """
    if not (torch.is_grad_enabled() and any(value.requires_grad for value in (x, scale, zero_point))):
        return dequantize(quantize(x, scale, zero_point, bits), scale, zero_point)  # the same bits, fewer temporaries
    codes = round_ste(x / scale) + zero_point
    # not torch.clamp: its gradient at the smallest and largest code themselves is 1 in some releases and 0 in others
    codes = torch.where(codes < 0, 0.0, torch.where(codes > levels(bits), float(levels(bits)), codes))
    return (codes - zero_point) * scale


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()  # exact: the difference of neighbours is representable


def along(values: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Shape a vector of per-channel values so that it broadcasts along an axis; a per-tensor value stays a scalar."""
    if axis is None:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.view(shape)
