"""The "BNS loss" in every form: distance of images from the statistics that a network's batch normalisation stores.

Methods define it differently. `BNStatistics` holds the differences as switches. Each method is a setting of them, and
`BNLoss` measures it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from zsqbench.synthesis.channel_moments import image_moments, merge
from zsqbench.synthesis.moment_store import MomentStore, Scope
from zsqbench.synthesis.probes import HookPoint, Probes, Seen

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class BNStatistics:
    """The statistics that are compared with the stored mean and variance, and the reduction of the gaps."""

    scope: Scope = "batch"
    """Images whose statistics are compared. `image`: each image over its height and width, gaps averaged. `batch`: the
    batch. `all`: all images; a `MomentStore` has the other batches. A number: groups of this many images."""
    moment: Literal["std", "var"] = "std"
    """The second compared quantity."""
    unbiased: bool = False
    """True if the variance of the images is divided by n - 1."""
    eps_images: float = 0.0
    """Number that is added to the variance of the images under the root."""
    eps_bn: float = 0.0
    """Number that is added to the stored variance under the root."""
    channel_reduce: Reduction = "mean"
    """Reduction of the squared gaps of a layer's channels to its term."""
    layer_reduce: Reduction = "mean"
    """Reduction of the terms to the loss; the input term counts as a layer."""
    moment_weight: float = 1.0
    """Weight of the second quantity's terms."""
    input_term: Literal["none", "image", "scope"] = "none"
    """Matching of the input to mean 0 and variance 1, like a layer: none, per image, or in the layers' scope."""
    input_channel_reduce: Reduction | None = None
    """Reduction of the input term's channels, where it differs from the layers'."""
    hook_point: HookPoint = "bn_input"
    """Tensor that is compared with a batch normalisation's statistics: its own input; or, as in ZeroQ's release, the
    output of the convolution with the same number in the order of registration."""


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

GENIE = BNStatistics(unbiased=True, eps_bn=1e-6, layer_reduce="sum", input_term="image", input_channel_reduce="sum")
"""GENIE's release: statistics of the batch, except those of the input, which are per image and summed over channels."""

HAST = BNStatistics(moment="var")
"""The releases of HAST and IntraQ: mean and biased variance of the batch, averaged over channels and layers."""

DEEP_INVERSION = BNStatistics(moment="var", channel_reduce="sum", layer_reduce="sum")
"""DeepInversion's release: mean and biased variance of the batch, squared gaps added up. It takes roots of the sums."""

DGH = BNStatistics(scope="all", eps_images=1e-6, eps_bn=1e-6, moment_weight=10.0, input_term="scope")
"""DGH's release: statistics of all images, averages over channels, layers and input, deviations ten times."""


@dataclass(frozen=True)
class BNGap:
    """Measurements of `BNLoss`. Terms are those of the layers in order of registration, then that of the input."""

    total: Tensor
    """The minimised loss, reduced over layers, with the second quantity weighted. A scalar."""
    seen: Seen
    """Data for further losses: moments of each image, and the network's outputs."""
    batch: tuple[Tensor, Tensor]
    """Mean and biased variance [T] of the whole batch for a store; channels of the input are last."""
    _parts: "list[_Part]"

    @property
    def means(self) -> Tensor:
        """Gap of the means, per layer."""
        return torch.stack([gaps.sum() for part in self._parts for gaps in torch.split(part.means, part.channels)])

    @property
    def moments(self) -> Tensor:
        """Gap of the standard deviations or variances, per layer, not weighted."""
        return torch.stack([gaps.sum() for part in self._parts for gaps in torch.split(part.moments, part.channels)])


class BNLoss:
    """Measures images against the stored statistics of a network, which it probes until it is closed.

    Meanwhile the network is in eval mode with frozen parameters. Afterwards it is unchanged. Use it as a context
    manager: `with BNLoss(module, ZEROQ) as loss: gap = loss(images)`.

    Raises ZSQBenchError for a network without batch normalisation.
    """

    def __init__(self, module: nn.Module, statistics: BNStatistics) -> None:
        self.statistics = statistics
        self.probes = Probes(module, statistics.hook_point)
        norms = self.probes.norms.values()
        self._layers = _Target([norm.running_mean for norm in norms], [norm.running_var for norm in norms], statistics)
        self._input: _Target | None = None

    def __enter__(self) -> Self:
        self.probes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.probes.__exit__()

    def store(self, sizes: Sequence[int], channels: int) -> MomentStore:
        """An empty store for batches of these sizes, of images with this many channels."""
        inputs = channels if self.statistics.input_term != "none" else 0
        return MomentStore(sizes, sum(self._layers.channels), inputs, self._layers.mean)

    def gap_quantiles(self, batches: Iterable[Tensor], share: float) -> Tensor:
        """The quantile `share` of the absolute gaps of each layer [2, layers]: of means, of second quantities.

        Gaps are those of the scope, with images [n, C, H, W] of all batches taken together. The input has no quantiles.
        """
        with torch.no_grad():
            seen = [self.probes(images, outputs=False) for images in batches]
            mean, variance = (torch.cat(each) for each in zip(*((one.mean, one.variance) for one in seen), strict=True))
            return self._layers.gap_quantiles(mean, variance, seen[0].counts, share)

    def allow(self, margins: Tensor) -> None:
        """Ignore gaps within these margins [2, layers] from now on: DSG's slack distribution alignment."""
        self._layers.allow(margins)

    def __call__(
        self,
        images: Tensor,
        store: MomentStore | None = None,
        batch: int = 0,
        *,
        outputs: bool = False,
        emphasis: Tensor | None = None,
    ) -> BNGap:
        """Run the network on images [N, C, H, W] and compare; differentiable with respect to the images.

        With a store, the images are its batch of this number, and the store has the moments of the others. Without a
        store they are all images. The network's outputs are computed if asked for. With an emphasis [groups, layers],
        the gaps of each group of images in the scope are multiplied by it before they are squared.
        """
        seen = self.probes(images, outputs=outputs)
        place = None if store is None else (store, batch)
        parts = [self._layers.compare(seen.mean, seen.variance, seen.counts, place, emphasis)]
        if self.statistics.input_term != "none":
            inputs = self._input_target(images)
            parts.append(inputs.compare(*image_moments(images), [images[0, 0].numel()], place))
        weight = self.statistics.moment_weight
        total = torch.stack([part.means.sum() + weight * part.moments.sum() for part in parts]).sum()
        if self.statistics.layer_reduce == "mean":
            total = total / sum(len(part.channels) for part in parts)
        batches = tuple(torch.cat(each) for each in zip(*(part.batch for part in parts), strict=True))
        return BNGap(total, seen, (batches[0], batches[1]), parts)

    def _input_target(self, images: Tensor) -> "_Target":
        """The target of the input, made at the first images, which give the number of channels, and then kept."""
        target = self._input or _input_target(images, self.statistics, first=sum(self._layers.channels))
        if not torch.compiler.is_compiling():  # changes in here would be compiled anew
            self._input = target
        return target


@dataclass(frozen=True)
class _Part:
    """Squared gaps [T] of layers with adjacent channels, weighted for the layers' own reduction."""

    means: Tensor
    moments: Tensor
    batch: tuple[Tensor, Tensor]
    channels: list[int]


class _Target:
    """Target statistics of the channels of some layers, side by side [T]."""

    def __init__(self, means: list[Tensor], variances: list[Tensor], statistics: BNStatistics, first: int = 0) -> None:
        self.statistics = statistics
        self.channels = [len(mean) for mean in means]
        self.mean = _exact(torch.cat(means).detach())
        variance = _exact(torch.cat(variances).detach())
        self._moment = torch.sqrt(variance + statistics.eps_bn) if statistics.moment == "std" else variance
        weights = [1.0 if statistics.channel_reduce == "sum" else 1 / each for each in self.channels]
        self._weight = self._spread_out(weights)
        self._columns = slice(first, first + len(self.mean))
        self._layer_of = self._spread_out(range(len(self.channels))).long()
        self._counts: dict[tuple[int, ...], Tensor] = {}
        self._margins: tuple[Tensor, Tensor] | None = None

    def gap_quantiles(self, mean: Tensor, variance: Tensor, counts: Sequence[int], share: float) -> Tensor:
        gaps = self._gaps(mean, variance, counts, self._batch(mean, variance), None)
        of_layers = [
            [torch.quantile(layer.abs().flatten(), share) for layer in torch.split(each, self.channels, 1)]
            for each in gaps
        ]
        return torch.stack([torch.stack(of_layers[0]), torch.stack(of_layers[1])])

    def allow(self, margins: Tensor) -> None:
        means, moments = margins.tolist()
        self._margins = self._spread_out(means), self._spread_out(moments)

    def compare(
        self,
        mean: Tensor,
        variance: Tensor,
        counts: Sequence[int],
        place: tuple[MomentStore, int] | None,
        emphasis: Tensor | None = None,
    ) -> _Part:
        """The squared gaps of images with these moments [N, T], of maps with these numbers of values."""
        batch = self._batch(mean, variance)
        gaps = self._gaps(mean, variance, counts, batch, place)
        if emphasis is not None:
            each_channel = emphasis[:, self._layer_of]
            gaps = gaps[0] * each_channel, gaps[1] * each_channel
        means, moments = (each.square().mean(0) * self._weight for each in gaps)
        return _Part(means, moments, batch, self.channels)

    def _gaps(
        self,
        mean: Tensor,
        variance: Tensor,
        counts: Sequence[int],
        batch: tuple[Tensor, Tensor],
        place: tuple[MomentStore, int] | None,
    ) -> tuple[Tensor, Tensor]:
        """Differences of means and second quantities [groups, T] beyond the margins, if there are margins."""
        groups, groups_variance, images = self._in_scope(mean, variance, batch, place)
        values = self._per_channel(tuple(counts)) * images
        spread = values > 1  # an image's 1 x 1 map has no spread; released codes make NaN of it
        if self.statistics.unbiased:
            groups_variance = groups_variance * (values / (values - 1).clamp_min(1))
        moment = groups_variance
        if self.statistics.moment == "std":
            # the tiny number gives the root a finite slope, so constant channels give no NaN
            moment = (groups_variance + self.statistics.eps_images).clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
        gaps = groups - self.mean, torch.where(spread, moment - self._moment, 0)
        if self._margins is None:
            return gaps
        # the sign is lost, but the gap is squared next
        beyond = [(each.abs() - margin).clamp_min(0) for each, margin in zip(gaps, self._margins, strict=True)]
        return beyond[0], beyond[1]

    def _in_scope(
        self, mean: Tensor, variance: Tensor, batch: tuple[Tensor, Tensor], place: tuple[MomentStore, int] | None
    ) -> tuple[Tensor, Tensor, "Tensor | int"]:
        """Moments [groups, T] of the groups of images in the scope, and the number of images of each group."""
        scope = self.statistics.scope
        if scope == "image":
            return mean, variance, 1
        if place is not None and place[0].spans(scope):
            store, number = place
            of_group, spread, images = store.join(number, batch, scope, self._columns)
            return of_group[None], spread[None], images
        if not isinstance(scope, int) or scope >= len(mean):
            return batch[0][None], batch[1][None], len(mean)
        images = mean.new_full((-(-len(mean) // scope), 1), scope)
        images[-1] = len(mean) - scope * (len(images) - 1)
        return *merge(mean, variance, scope), images

    @staticmethod
    def _batch(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = merge(mean, variance)
        return means[0], variances[0]

    def _per_channel(self, counts: tuple[int, ...]) -> Tensor:
        if torch.compiler.is_compiling():  # changes in here would be compiled anew
            return self._spread_out(counts)
        if counts not in self._counts:
            self._counts = {counts: self._spread_out(counts)}
        return self._counts[counts]

    def _spread_out(self, of_layers: Sequence[float]) -> Tensor:
        """Repeat one number for each layer to one for each channel."""
        parts = [self.mean.new_full((each,), number) for each, number in zip(self.channels, of_layers, strict=True)]
        return torch.cat(parts)


def _input_target(images: Tensor, statistics: BNStatistics, first: int) -> _Target:
    """Mean 0 and deviation 1 for each channel; exact per image, as in ZeroQ's and GENIE's releases."""
    if statistics.input_term == "image":
        statistics = replace(statistics, scope="image", eps_bn=0.0)
    if statistics.input_channel_reduce is not None:
        statistics = replace(statistics, channel_reduce=statistics.input_channel_reduce)
    zeros = images.new_zeros(images.shape[1])
    return _Target([zeros], [torch.ones_like(zeros)], statistics, first)


def _exact(values: Tensor) -> Tensor:
    """The values in float32 at least. Half-precision second moments lose the variance where the mean is large."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
