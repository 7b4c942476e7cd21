"""Mean and variance of each image's channels, measured in a network's forward pass at little extra cost.

Losses on BN statistics need only these moments and arithmetic on small tensors: moments of a batch or of a group of
images (`merge`), of several calls of one layer (`merge_calls`), of earlier batches (`store.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CANCELLED = 100.0
"""Squared mean, in variances, above which a variance is not computed as a difference of squares. Below it, the
relative error is about 1e-4 at most, and 2e-6 where the mean is as large as the deviation."""


def image_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of values [N, C, H, W] over height and width, each [N, C]; differentiable once.

    In float32 at least, and in two passes where the difference of squares would lose the variance.
    """
    mean, variance = _Moments.apply(values)
    return mean, variance


def norm_and_moments(values: Tensor, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output of a batch normalisation in eval mode, and the `image_moments` of its input; differentiable once."""
    normalized, mean, variance = _NormAndMoments.apply(
        values, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    )
    return normalized, mean, variance


def merge(mean: Tensor, variance: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Moments of groups of `size` images from those of images [N, C]: [groups, C]; the last group may be smaller."""
    images = len(mean)
    size = min(size or images, images)
    whole = images - images % size
    parts = [_merge_rows(*(each[:whole].reshape(-1, size, each.shape[1]) for each in (mean, variance)))]
    if whole < images:
        parts.append(_merge_rows(mean[None, whole:], variance[None, whole:]))
    means, variances = zip(*parts, strict=True)
    return (means[0], variances[0]) if len(parts) == 1 else (torch.cat(means), torch.cat(variances))


def merge_calls(calls: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, int]:
    """Moments of all values of a layer in several calls, each given by mean, variance and number of values."""
    if len(calls) == 1:
        return calls[0]
    counts = [count for _, _, count in calls]
    total = sum(counts)
    shares = [count / total for count in counts]
    mean = torch.stack([share * mean for share, (mean, _, _) in zip(shares, calls, strict=True)]).sum(0)
    spread = [variance + (each - mean).square() for each, variance, _ in calls]
    return mean, torch.stack([share * each for share, each in zip(shares, spread, strict=True)]).sum(0), total


def _merge_rows(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Merge over the second dimension of [groups, size, C]. All rows have the same number of values."""
    of_group = mean.mean(1)
    return of_group, variance.mean(1) + (mean - of_group[:, None]).square().mean(1)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _measure(values)
        ctx.save_for_backward(values, mean)
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        values, mean = ctx.saved_tensors
        return _gradient(values, mean, gradients, None, None)


class _NormAndMoments(torch.autograd.Function):
    """A batch normalisation and moments of its input. Their gradients meet in one pass over the input."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, centre: Tensor, spread: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _measure_around(values, centre) if torch.compiler.is_compiling() else _measure(values)
        ctx.save_for_backward(values, mean, spread, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        normalized = functional.batch_norm(values, centre, spread, weight, bias, training=False, eps=eps)
        return normalized, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None, None, None]:
        values, mean, spread, weight = ctx.saved_tensors
        of_output, *of_moments = gradients
        scale = torch.rsqrt(spread + ctx.eps)
        scale = scale if weight is None else scale * weight
        return _gradient(values, mean, of_moments, of_output, scale), None, None, None, None, None


def _for_maps(values: Tensor) -> bool:
    """True if values lie in memory map by map on a CPU, where map kernels are fast; a compiler has its own kernels."""
    return values.device.type == "cpu" and values.is_contiguous() and not torch.compiler.is_compiling()


def _measure(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map.

    A CPU reads values once for each and writes nothing: a third of the time of `torch.mean` of squared differences, a
    tenth of `torch.var_mean`'s. A check for cancelled digits would make a GPU wait.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    mean = exact.mean((2, 3))
    if not _for_maps(values):
        return mean, (exact - mean[:, :, None, None]).square_().mean((2, 3))
    variance = torch.linalg.vector_norm(exact, dim=(2, 3)).square_().div_(values[0, 0].numel())
    variance.addcmul_(mean, mean, value=-1)
    cancelled = (mean / CANCELLED).mul_(mean) > variance
    if cancelled.any():
        maps = exact[cancelled]
        variance[cancelled] = (maps - mean[cancelled][:, None, None]).square().mean((1, 2))
    return mean, variance


def _measure_around(values: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map, in one pass when compiled.

    The difference of squares is safe around the norm's stored mean, because the mean is near it, in deviations.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32)) - centre[:, None, None]
    gap, square = exact.mean((2, 3)), exact.square().mean((2, 3))
    return gap + centre, (square - gap.square()).clamp_min(0)


def _gradient(
    values: Tensor,
    mean: Tensor,
    of_moments: "tuple[Tensor | None, ...] | list[Tensor | None]",
    of_output: Tensor | None,
    scale: Tensor | None,
) -> Tensor | None:
    """The sum of_mean / n + of_variance * 2 / n * (values - mean) + scale * of_output."""
    of_mean, of_variance = (torch.zeros_like(mean) if gradient is None else gradient for gradient in of_moments)
    count = values[0, 0].numel()
    result = _from_centre(values.to(mean.dtype), mean, of_variance * (2 / count), of_mean / count)
    if of_output is not None and scale is not None:
        result.addcmul_(of_output, scale[:, None, None])
    return result.to(values.dtype)


def _from_centre(values: Tensor, centre: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """(values - centre) * slope + offset, of maps [N, C, H, W] and numbers [N, C].

    On a CPU it is a batch normalisation in which all maps are channels of one image: one pass with vectors.
    """
    if not _for_maps(values):
        slope, shift = slope[:, :, None, None], (offset - centre * slope)[:, :, None, None]
        return (values * slope).add_(shift)
    maps, ones = values.view(1, -1, *values.shape[2:]), torch.ones_like(centre)
    centres, spreads, slopes, offsets = (each.reshape(-1) for each in (centre, ones, slope, offset))
    return functional.batch_norm(maps, centres, spreads, slopes, offsets, eps=0.0).view_as(values)
