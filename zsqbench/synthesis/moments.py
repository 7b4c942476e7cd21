"""Mean and variance of each image's channels, taken in a network's forward pass at little more than its own cost.

Everything that a loss on BN statistics needs follows from them by arithmetic on small tensors: those of a batch or of
a group of images (`merge`), of several calls of one layer (`merge_calls`), of batches seen earlier (`store.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MEASURED_AT_ONCE = 2**17
"""Values that are measured at a time on a CPU, so that what is read four times is read from its cache: 512 kB.

Of ResNet-20's first layer, 256 images, in one thread: 10.0 ms for `torch.batch_norm_update_stats`, 28 for
`torch.var_mean`, 3.5 here. Memory that is new each time costs more than arithmetic: filling 50 MB of it takes 30 ms.
"""

DIFFERENTIATED_AT_ONCE = 2**20
"""The same of gradients, which need no memory besides their own."""


def image_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of values [N, C, H, W] over height and width, each [N, C]; differentiable once.

    In two passes, as the difference of squares would lose the variance where the mean is large, and at least in
    float32.
    """
    mean, variance = _Moments.apply(values)
    return mean, variance


def norm_and_moments(values: Tensor, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch normalisation in eval mode makes of values, and their `image_moments`; differentiable once."""
    normalised, mean, variance = _NormAndMoments.apply(
        values, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    )
    return normalised, mean, variance


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
    """Moments of all values that a layer saw in several calls, each given by mean, variance and number of values."""
    if len(calls) == 1:
        return calls[0]
    counts = [count for _, _, count in calls]
    total = sum(counts)
    shares = [count / total for count in counts]
    mean = torch.stack([share * mean for share, (mean, _, _) in zip(shares, calls, strict=True)]).sum(0)
    spread = [variance + (each - mean).square() for each, variance, _ in calls]
    return mean, torch.stack([share * each for share, each in zip(shares, spread, strict=True)]).sum(0), total


def _merge_rows(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Over the second dimension of [groups, size, C]; all rows stand for equally many values."""
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
    """A batch normalisation and moments of its input, whose gradients meet in one pass over the input."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, centre: Tensor, spread: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _measure_around(values, centre) if torch.compiler.is_compiling() else _measure(values)
        ctx.save_for_backward(values, mean, spread, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        normalised = functional.batch_norm(values, centre, spread, weight, bias, training=False, eps=eps)
        return normalised, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None, None, None]:
        values, mean, spread, weight = ctx.saved_tensors
        of_output, *of_moments = gradients
        scale = torch.rsqrt(spread + ctx.eps)
        scale = scale if weight is None else scale * weight
        return _gradient(values, mean, of_moments, of_output, scale), None, None, None, None, None


def _blocks(values: Tensor, at_once: int) -> int:
    """How many images to work on at a time."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return len(values)
    return max(1, at_once // max(1, values[0].numel()))


def _measure(values: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(values.dtype, torch.float32)
    mean = values.new_empty(values.shape[:2], dtype=kind)
    variance = torch.empty_like(mean)
    size = _blocks(values, MEASURED_AT_ONCE)
    blocks = zip(*(torch.split(each, size) for each in (values, mean, variance)), strict=True)
    for block, its_mean, its_variance in blocks:
        exact = block.to(kind)
        torch.mean(exact, (2, 3), out=its_mean)
        torch.mean((exact - its_mean[:, :, None, None]).square_(), (2, 3), out=its_variance)
    return mean, variance


def _measure_around(values: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one pass, which a compiler makes of it.

    The difference of squares is safe around what the norm stores: the mean is not far from there, in deviations.
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
    """The sum scale * of_output + of_mean / n + of_variance * 2 / n * (values - mean)."""
    of_mean, of_variance = (torch.zeros_like(mean) if gradient is None else gradient for gradient in of_moments)
    count = values[0, 0].numel()
    slope = of_variance * (2 / count)
    offset = of_mean / count - slope * mean
    result = torch.empty_like(values)
    outputs = result if of_output is None else of_output
    size = _blocks(values, DIFFERENTIATED_AT_ONCE)
    blocks = zip(*(torch.split(each, size) for each in (values, slope, offset, outputs, result)), strict=True)
    for block, its_slope, its_offset, output, target in blocks:
        exact = target if target.dtype == mean.dtype else torch.empty_like(target, dtype=mean.dtype)
        torch.mul(block, its_slope[:, :, None, None], out=exact)
        exact.add_(its_offset[:, :, None, None])
        if scale is not None and of_output is not None:
            exact.addcmul_(output, scale[:, None, None])
        if exact is not target:
            target.copy_(exact)
    return result
