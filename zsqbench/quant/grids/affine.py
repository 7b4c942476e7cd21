"""The affine grid 0 .. 2^b - 1: q = clamp(round(x / scale) + zero_point), x' = (q - zero_point) * scale.

Symmetric and power-of-two grids are affine grids with special parameters. So all grids share one arithmetic and one
form of artifact. Everything broadcasts: a scale of shape [] quantizes per tensor, a scale of shape [C, 1, 1, 1] per
channel (see `along`).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zsqbench.scheme import Grid

BLOCK = 2**17
"""Number of values of an activation that a CPU processes at a time: 512 kB."""

HALFWAY = 0.5 - 2.0**-10
"""Within this distance from a tie, in steps, rounding errors of float32 may decide how a value is rounded."""

MIN_THRESHOLD = 2.0**-16
"""The smallest threshold of a power-of-two grid, as in Sony's Model Compression Toolkit."""


class Affine(NamedTuple):
    """The parameters of an affine grid. `zero_point` holds integers in floating point."""

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


def symmetric_parameters(threshold: Tensor, bits: int, signed: Tensor | bool) -> Affine:
    """The grid of a threshold t: -t .. t - t / 2^(b-1) if it is signed, and 0 .. t - t / 2^b if it is not.

    A threshold of zero (a tensor of zeros) becomes one.
    """
    threshold = torch.where(threshold < torch.finfo(threshold.dtype).tiny, torch.ones_like(threshold), threshold)
    if isinstance(signed, bool):  # no tensor is made of it, which a GPU that records an update could not do
        half = 2.0 ** (bits - 1)
        return Affine(threshold / (half if signed else 2 * half), torch.full_like(threshold, half if signed else 0.0))
    zero_point = torch.where(signed, 2.0 ** (bits - 1), 0.0).to(threshold)
    steps = torch.where(signed, 2.0 ** (bits - 1), 2.0**bits).to(threshold)
    return Affine(threshold / steps, zero_point.expand_as(threshold))


def covering_threshold(low: Tensor, high: Tensor, bits: int, signed: Tensor | bool) -> Tensor:
    """The smallest threshold whose grid reaches from low (or 0, unsigned) to high."""
    half, whole = 2.0 ** (bits - 1), 2.0**bits
    both, above = torch.maximum(-low, high * (half / (half - 1))), high * (whole / (whole - 1))
    if isinstance(signed, bool):
        return (both if signed else above).clamp(min=0)
    return torch.where(signed, both, above).clamp(min=0)


def power_of_two(threshold: Tensor) -> Tensor:
    """The smallest power of two that is not below the threshold and not below 2^-16. It is exact."""
    mantissa, exponent = torch.frexp(threshold.clamp(min=MIN_THRESHOLD))
    return torch.ldexp(torch.ones_like(threshold), torch.where(mantissa == 0.5, exponent - 1, exponent))  # noqa: PLR2004


def halved(threshold: Tensor, candidates: int) -> Tensor:
    """[candidates, ...]: 2 t, t, t / 2, ..., not below 2^-16. Searches on powers of two try these."""
    factors = 2.0 ** (1 - torch.arange(candidates, dtype=threshold.dtype, device=threshold.device))
    return (factors.view(-1, *[1] * threshold.dim()) * threshold).clamp(min=MIN_THRESHOLD)


def grid_parameters(low: Tensor, high: Tensor, bits: int, grid: Grid, signed: Tensor | bool) -> Affine:
    """The finest grid of this kind that spans low to high. An affine grid has no sign."""
    if grid == "affine":
        return affine_parameters(low, high, bits)
    threshold = covering_threshold(low, high, bits, signed)
    return symmetric_parameters(power_of_two(threshold) if grid == "power_of_two" else threshold, bits, signed)


def pixel_parameters(low: Tensor, high: Tensor, bits: int, grid: Grid = "affine") -> Affine:
    """The grid of an image whose valid pixels go from low to high (scalars, widened to hold zero), in float32.

    If all channels have one mean and deviation, the codes of an affine grid of 8 bits are the pixels 0 .. 255. If zero
    is halfway between two pixels, as with a mean of 127.5 of 255, every pixel would be halfway between two codes, and
    the rounding of ties would lose up to half of the codes. The grid is then a step wider, so that both ends are
    inside, and only the two pixels in the middle share a code. Pixels below them have the next code.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    scale, zero_point = grid_parameters(low, high, bits, grid, bool(low < 0))
    beside = (-low / scale - zero_point).abs()
    if grid == "affine" and beside > HALFWAY and 0 < zero_point < levels(bits):
        scale = torch.maximum(-low / zero_point, high / (levels(bits) - zero_point))
    return Affine(scale.float(), zero_point.float() + 0.0)  # -0 is not a code


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes of x on the grid, integers 0 .. 2^b - 1 in floating point. Half is rounded to even."""
    return (x / scale).round_().add_(zero_point).clamp_(0, levels(bits))


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values of codes (of any dtype)."""
    return (codes.to(scale.dtype) - zero_point).mul_(scale)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, clips_first: bool = False) -> Tensor:
    """X rounded to the grid. The gradient passes the rounding straight through and is zero where x was clamped.

    The scale gets the gradient that follows from this, as in BRECQ and QDrop (no LSQ scaling). The zero point gets no
    gradient. With `clips_first`, values beyond the last code are clamped even if they would be rounded to it, as in
    GENIE. In a trace (torch.jit.trace), there are no gradients.
    """
    if _is_traced() or not (torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)):
        return _on_grid(x, scale, zero_point, bits)
    function = _CompiledStraightThrough if torch.compiler.is_compiling() else _StraightThrough
    values: Tensor = function.apply(x, scale, zero_point, bits, clips_first)
    return values


def within(x: Tensor, low: Any, high: Any) -> Tensor:
    """1 where x is between two bounds (numbers or tensors) or on one of them, otherwise 0, in the type of x.

    Truth values would take longer: a CPU's kernels store them one by one, and so does compiled code.
    """
    if torch.compiler.is_compiling():
        mask: Tensor = (1 - (low - x).sign().clamp_min(0)) * (1 - (x - high).sign().clamp_min(0))
        return mask
    return x.clamp(low, high).eq_(x)


class _CompiledStraightThrough(torch.autograd.Function):
    """The mask with numbers instead of truth values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, clips_first: bool) -> Tensor:
        low, high = 0 - zero_point, levels(bits) - zero_point
        steps = x / scale
        codes = steps.round()
        inside = within(steps if clips_first else codes, low, high)
        codes = codes.clamp(low, high)
        slope = [codes - steps * inside] if scale.requires_grad else []
        ctx.save_for_backward(inside.to(torch.bfloat16), *slope)
        ctx.shape = scale.shape
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        inside, *slope = ctx.saved_tensors
        to_scale = (gradients[0] * slope[0]).sum_to_size(ctx.shape) if slope else None
        return gradients[0] * inside if ctx.needs_input_grad[0] else None, to_scale, None, None, None


class _StraightThrough(torch.autograd.Function):
    """`fake_quantize` as one function. The graph of its parts would take several times as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, clips_first: bool) -> Tensor:
        low, high = 0 - zero_point, levels(bits) - zero_point
        if not scale.dim():
            low, high = _numbers(low, high)
        values = torch.empty_like(x, dtype=torch.promote_types(x.dtype, scale.dtype))
        inside = torch.empty_like(x, dtype=torch.bool)
        slope = torch.empty_like(values) if scale.requires_grad else None  # the derivative to the scale
        for part in _parts(x, scale):
            steps = torch.div(x[part], scale, out=None if slope is None else slope[part])
            codes = torch.round(steps, out=values[part])
            inside[part].copy_(within(steps if clips_first else codes, low, high))
            codes.clamp_(low, high)
            if slope is not None:
                torch.sub(codes, _kept(steps, inside[part]), out=steps)
            codes.mul_(scale)
        ctx.shape = scale.shape
        ctx.save_for_backward(inside, *([] if slope is None else [slope]))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        inside, *slope = ctx.saved_tensors
        to_scale = None
        if slope and ctx.shape == torch.Size([]):
            to_scale = inner_product(gradients[0], slope[0])
        elif slope:
            to_scale = (gradients[0] * slope[0]).sum_to_size(ctx.shape)
        return _kept(gradients[0], inside) if ctx.needs_input_grad[0] else None, to_scale, None, None, None


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    """X where a mask is true, otherwise 0. A CPU uses bits: a product with truth values takes four times as long."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x * mask
    bits = mask.view(torch.int8).to(torch.int32).neg_()
    return bits.bitwise_and_(x.view(torch.int32)).view(torch.float32)


def _on_grid(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """X rounded to the grid: `dequantize` of `quantize`. With one grid for the tensor it takes few passes."""
    if scale.dim():
        return dequantize(quantize(x, scale, zero_point, bits), scale, zero_point)
    low, high, step = _numbers(0 - zero_point, levels(bits) - zero_point, scale)
    if _makes_graph():
        return torch.div(x, step).round().clamp(low, high).mul(step)
    values = torch.empty_like(x)
    for part in _parts(x, scale):
        torch.div(x[part], step, out=values[part]).round_().clamp_(low, high).mul_(step)
    return values


def _makes_graph() -> bool:
    """True while torch.jit.trace, torch.export or torch.compile makes a graph of the calls.

    The graph must be valid for batches of other sizes, so it must not have the blocks of this batch. A trace with
    blocks did not compute the further rows of a larger batch.
    """
    return _is_traced() or torch.compiler.is_compiling()


def _is_traced() -> bool:
    """True while torch.jit.trace makes a graph of the calls."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]  # public, and not annotated


def _numbers(*scalars: Tensor) -> tuple[Any, ...]:
    """Scalars as numbers, if these are available, because clamping between numbers is faster than between tensors."""
    if _makes_graph() or any(scalar.device.type != "cpu" for scalar in scalars):
        return scalars
    return tuple(scalar.item() for scalar in scalars)


def _parts(x: Tensor, scale: Tensor) -> list[Any]:
    """Indices of as many rows of a tensor as fit into a CPU's cache, because each row is read several times."""
    if scale.dim() or not x.dim() or x.device.type != "cpu" or _makes_graph():
        return [...]
    rows = max(1, BLOCK // max(1, x[0].numel()))
    return [slice(first, first + rows) for first in range(0, len(x), rows)]


def inner_product(x: Tensor, y: Tensor) -> Tensor:
    """The sum of x * y, of equal shapes, without a copy if both have the same order in memory."""
    if x.dim() == 4 and not x.is_contiguous() and x.stride() == y.stride():  # noqa: PLR2004 - images, channels last
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    return torch.dot(x.flatten(), y.flatten())


def fake_quantize_identity(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """X rounded to the grid. The gradient passes rounding and clamping unchanged, and the grid gets no gradient.

    As in ZeroQ, IntraQ, HAST and AIT.
    """
    if _is_traced():
        return _on_grid(x, scale, zero_point, bits)
    values: Tensor = _Identity.apply(x, scale, zero_point, bits)
    return values


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        return _on_grid(x, scale, zero_point, bits)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


def rectify_and_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, ceiling: float) -> Tensor:
    """`fake_quantize_identity` of x between 0 and a ceiling. With one grid for the tensor, x is overwritten.

    The operator that made x must not need x for its gradient. The result of half precision is float32.
    """
    if scale.dim() or _is_traced():
        return fake_quantize_identity(x.float().clamp(0, ceiling), scale, zero_point, bits)
    function = _CompiledRectified if torch.compiler.is_compiling() else _Rectified
    values: Tensor = function.apply(x, scale, zero_point, bits, ceiling)
    return values


class _Rectified(torch.autograd.Function):
    """Keeps one bit for each input value. ReLU and rounding would each keep the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, ceiling: float) -> Tensor:
        passed = torch.empty_like(x, dtype=torch.bool)
        in_place = x.dtype == scale.dtype
        values = x if in_place else torch.empty_like(x, dtype=scale.dtype)
        low, high, step = _numbers(0 - zero_point, levels(bits) - zero_point, scale)
        for part in _parts(x, scale):
            torch.gt(x[part], 0, out=passed[part])
            if ceiling != math.inf:
                passed[part].logical_and_(x[part] < ceiling)
            rectified = torch.clamp(x[part].to(values.dtype), 0, ceiling, out=values[part])
            torch.div(rectified, step, out=values[part]).round_().clamp_(low, high).mul_(step)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(passed)
        ctx.kind = x.dtype
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (passed,) = ctx.saved_tensors
        return (gradients[0] * passed).to(ctx.kind), None, None, None, None


class _CompiledRectified(torch.autograd.Function):
    """Keeps numbers (1 where the gradient passes, otherwise 0): compiled kernels store truth values one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, ceiling: float) -> Tensor:
        exact = x.to(scale.dtype)
        passed = exact.sign().clamp_min(0)
        if ceiling != math.inf:
            passed = passed * (ceiling - exact).sign().clamp_min(0)
        ctx.save_for_backward(passed.to(torch.bfloat16))
        ctx.kind = x.dtype
        return _on_grid(exact.clamp(0, ceiling), scale, zero_point, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (passed,) = ctx.saved_tensors
        return (gradients[0] * passed).to(ctx.kind), None, None, None, None


def along(values: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Shape a vector of per-channel values so that it broadcasts along an axis. A per-tensor value stays a scalar."""
    if axis is None:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.view(shape)
