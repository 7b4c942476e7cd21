"""How far images are from the statistics that a network's batch normalisation stores: the "BNS loss", in every form.

Methods mean different things by it. `BNStatistics` holds the differences as switches, each method is a setting of
them, and `BNLoss` measures it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


@dataclass(frozen=True)
class BNStatistics:
    """What is compared with the stored mean and variance, and how the gaps are added up."""

    scope: Literal["image", "batch"] = "batch"
    """Statistics of each image over its height and width, averaged as gaps; or of the batch as a whole."""
    moment: Literal["std", "var"] = "std"
    """The second quantity that is compared."""
    unbiased: bool = False
    """Whether the variance of the images is divided by n - 1."""
    eps_images: float = 0.0
    """Added to the variance of the images under the root."""
    eps_bn: float = 0.0
    """Added to the stored variance under the root."""
    channel_reduce: Literal["sum", "mean"] = "mean"
    """How the squared gaps of a layer's channels become its term."""
    layer_reduce: Literal["sum", "mean"] = "mean"
    """How the terms become the loss; the input term counts as a layer."""
    moment_weight: float = 1.0
    """Weight of the second quantity's terms."""
    input_term: Literal["none", "image", "scope"] = "none"
    """Whether the input is held to mean 0 and variance 1 like a layer: not, per image, or in the layers' scope."""
    input_channel_reduce: Literal["sum", "mean"] | None = None
    """Reduction of the input term's channels, where it differs from the layers'."""
    hook_point: Literal["bn_input", "conv_output"] = "bn_input"
    """What a batch normalisation's statistics are compared with: its own input; or, as ZeroQ's release does, the output
    of the convolution with the same number in the order of registration."""


ZEROQ = BNStatistics(
    scope="image",
    unbiased=True,
    eps_images=1e-6,
    eps_bn=1e-6,
    channel_reduce="sum",
    layer_reduce="sum",
    input_term="image",
    hook_point="conv_output",
)
"""ZeroQ's release: per-image statistics, sums over channels and layers, the image itself as one more layer."""


class BNGap(NamedTuple):
    """What `BNLoss` measures; the terms are those of the layers in order of registration, then that of the input."""

    total: Tensor
    """Reduced over layers, the second quantity weighted: what is minimised. A scalar."""
    means: Tensor
    """Gap of the means, per layer."""
    moments: Tensor
    """Gap of the standard deviations or variances, per layer, not weighted."""


class BNLoss:
    """Measures images against the stored statistics of a network, whose hooks it holds until it is closed.

    The network is put into eval mode with its parameters frozen while it is hooked, and is afterwards as it was.
    Use it as a context manager: `with BNLoss(module, ZEROQ) as loss: gap = loss(images)`.

    Raises ZSQBenchError for a network without batch normalisation.
    """

    def __init__(self, module: nn.Module, statistics: BNStatistics) -> None:
        self.statistics = statistics
        self._module = module
        self._layers = batch_norms(module)
        if not self._layers:
            raise ZSQBenchError(f"{type(module).__name__} has no batch normalisation whose statistics could be matched")
        self._targets = [_targets(norm, statistics) for norm in self._layers.values()]
        self._resources = ExitStack()
        self._watched: list[list[Tensor]] = []

    def __enter__(self) -> Self:
        self._resources.enter_context(frozen(self._module))
        points = watch_points(self._module, self.statistics.hook_point)
        self._watched = self._resources.enter_context(watch(points))
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def __call__(self, images: Tensor) -> BNGap:
        """Run the network on images [N, C, H, W] and compare; differentiable with respect to the images."""
        for record in self._watched:
            record.clear()
        self._module(images)
        gaps = [
            _gap(name, record, target, self.statistics)
            for name, record, target in zip(self._layers, self._watched, self._targets, strict=True)
        ]
        if self.statistics.input_term != "none":
            gaps.append(_input_gap(images, self.statistics))
        means, moments = (torch.stack(terms) for terms in zip(*gaps, strict=True))
        terms = means + self.statistics.moment_weight * moments
        return BNGap(terms.sum() if self.statistics.layer_reduce == "sum" else terms.mean(), means, moments)


def moments(values: Tensor, dims: list[int], *, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over some dimensions, differentiable once, with sums of squares divided by n - correction.

    What `torch.var_mean` computes, in a sixth of its time on a CPU, forward and backward: it takes a third off an
    iteration of a generator.
    """
    mean, variance = _Moments.apply(values, dims, correction)
    return mean, variance


def batch_norms(module: nn.Module) -> dict[str, Any]:
    """The batch normalisations that store statistics, by path, in order of registration."""
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, BATCH_NORMS) and getattr(norm, "running_mean", None) is not None
    }


def watch_points(module: nn.Module, hook_point: Literal["bn_input", "conv_output"]) -> list[tuple[nn.Module, bool]]:
    """For each batch normalisation the module to watch, and whether its output is meant or its input.

    Raises ZSQBenchError where there are fewer convolutions than batch normalisations.
    """
    norms = batch_norms(module)
    if hook_point == "bn_input":
        return [(norm, False) for norm in norms.values()]
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    if len(convolutions) < len(norms):
        raise ZSQBenchError(
            f"{type(module).__name__} has {len(norms)} batch normalisations but {len(convolutions)} convolutions, "
            "which cannot be paired by their order"
        )
    return [(layer, True) for layer in convolutions[: len(norms)]]


@contextmanager
def watch(points: list[tuple[nn.Module, bool]]) -> Iterator[list[list[Tensor]]]:
    """Collect the outputs or inputs of modules: one list for each, one tensor for each call, until the block ends."""
    records: list[list[Tensor]] = [[] for _ in points]
    with ExitStack() as hooks:
        for (module, output), record in zip(points, records, strict=True):
            hooks.callback(module.register_forward_hook(_recorder(record, output=output)).remove)
        yield records


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a network into eval mode and let it collect no gradients, until the block ends."""
    modes = [(part, part.training) for part in module.modules()]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part, training in modes:
            part.training = training


class _Moments(torch.autograd.Function):
    """Two-pass moments, whose gradient is one affine map of the values: offset + slope * values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dims: list[int], correction: int) -> tuple[Tensor, Tensor]:
        mean = values.mean(dims, keepdim=True)
        ctx.count = values.numel() // mean.numel()
        ctx.divisor = ctx.count - correction
        ctx.shape = mean.shape
        ctx.save_for_backward(values, mean)
        variance = torch.linalg.vector_norm(values - mean, dim=dims).square() / ctx.divisor
        return mean.reshape(variance.shape), variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, mean = ctx.saved_tensors
        of_mean, of_variance = (gradient.reshape(ctx.shape) for gradient in gradients)
        slope = of_variance * (2 / ctx.divisor)
        return torch.addcmul(of_mean / ctx.count - slope * mean, values, slope), None, None


def _recorder(record: list[Tensor], *, output: bool) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        record.append(result if output else inputs[0])

    return hook


def _targets(norm: Any, statistics: BNStatistics) -> tuple[Tensor, Tensor]:
    variance = norm.running_var.detach()
    moment = torch.sqrt(variance + statistics.eps_bn) if statistics.moment == "std" else variance
    return norm.running_mean.detach(), moment


def _gap(
    name: str, record: list[Tensor], target: tuple[Tensor, Tensor], statistics: BNStatistics
) -> tuple[Tensor, Tensor]:
    if not record:
        raise ZSQBenchError(f"the forward pass does not reach the layer of batch normalisation {name!r}")
    # a module called several times normalises all its inputs by the same numbers: one sample
    values = torch.cat([call.flatten(2) for call in record], 2) if len(record) > 1 else record[0].flatten(2)
    if values.shape[1] != len(target[0]):
        raise ZSQBenchError(
            f"batch normalisation {name!r} has {len(target[0])} channels, but the convolution with the same number in "
            f"the order of registration gives {values.shape[1]}: pair each with its own input instead (bn_input)"
        )
    return _compare(values, target, statistics)


def _input_gap(images: Tensor, statistics: BNStatistics) -> tuple[Tensor, Tensor]:
    if statistics.input_term == "image":
        statistics = replace(statistics, scope="image")
    if statistics.input_channel_reduce is not None:
        statistics = replace(statistics, channel_reduce=statistics.input_channel_reduce)
    channels = images.shape[1]
    return _compare(images.flatten(2), (images.new_zeros(channels), images.new_ones(channels)), statistics)


def _compare(values: Tensor, target: tuple[Tensor, Tensor], statistics: BNStatistics) -> tuple[Tensor, Tensor]:
    """Squared gaps of mean and second quantity of values [N, C, n], reduced to two scalars."""
    if not values.dtype.itemsize >= torch.float32.itemsize:
        values = values.float()  # half-precision second moments lose the variance where the mean is large
    dims = [2] if statistics.scope == "image" else [0, 2]
    counted = values.shape[2] if statistics.scope == "image" else values.shape[0] * values.shape[2]
    spread = counted > 1
    mean, variance = moments(values, dims, correction=int(statistics.unbiased and spread))  # [N, C] or [C]
    means = _reduced(mean - target[0], statistics)
    if not spread:  # an image's 1 x 1 map has no spread: the released codes make NaN of it
        return means, torch.zeros_like(means)
    moment = torch.sqrt(variance + statistics.eps_images) if statistics.moment == "std" else variance
    return means, _reduced(moment - target[1], statistics)


def _reduced(gaps: Tensor, statistics: BNStatistics) -> Tensor:
    """Sum or mean of squared gaps [N, C] or [C] over channels, averaged over images."""
    squared = gaps.square()
    if statistics.channel_reduce == "mean":
        return squared.mean()
    return squared.sum() / (len(gaps) if gaps.dim() > 1 else 1)
