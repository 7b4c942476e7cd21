"""Moments of earlier batches, for statistics of more images than fit into one forward pass."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zsqbench.synthesis.channel_moments import image_moments, merge

Scope = Literal["image", "batch", "all"] | int
"""Images whose statistics are meant: each image, the batch, all images, or groups of this many images."""


class MomentStore:
    """Mean and variance of all channels for each of several batches, without gradients.

    Columns are the channels of all layers side by side, then those of the input. A further batch of images adds a row
    with two numbers for each channel, whatever the images' size. The variance is kept instead of DGH's second moment.
    The same results follow from it with less cancellation: a group's variance is the mean of its batches' variances
    plus the variance of their means.
    """

    def __init__(self, sizes: Sequence[int], channels: int, inputs: int, like: Tensor) -> None:
        self.sizes = list(sizes)
        self.mean = like.new_zeros(len(sizes), channels + inputs)
        self.variance = torch.zeros_like(self.mean)
        self._shares = like.new_tensor(self.sizes)
        self._inputs = slice(channels, channels + inputs)

    @property
    def second_moment(self) -> Tensor:
        """E[x^2] of each batch and channel, which DGH's release stores."""
        return self.variance + self.mean.square()

    def put(self, batch: int, moments: tuple[Tensor, Tensor], columns: slice = slice(None)) -> None:
        """Keep mean and variance of a batch, for all its channels or for `columns`."""
        self.mean[batch, columns], self.variance[batch, columns] = (each.detach() for each in moments)

    def put_input(self, batch: int, images: Tensor) -> None:
        """Keep the input's moments of these images, instead of those that went through the network."""
        if self._inputs.start < self._inputs.stop:
            mean, variance = merge(*image_moments(images))
            self.put(batch, (mean[0], variance[0]), self._inputs)

    def spans(self, scope: Scope) -> bool:
        """True if groups of this scope reach over more than one batch."""
        return scope == "all" if isinstance(scope, str) else scope > self.sizes[0]

    def share(self, batch: int, scope: Scope) -> float:
        """The batch's share of the images of its group."""
        group = self.sizes[self._group(batch, scope)]
        return self.sizes[batch] / sum(group)

    def join(
        self, batch: int, moments: tuple[Tensor, Tensor], scope: Scope, columns: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of the group that a batch belongs to, and the group's number of images.

        These moments of the batch replace the kept ones, and gradients flow to them. Batches count by their number of
        images, so a smaller last batch weighs less.
        """
        rows = self._group(batch, scope)
        images = self._shares[rows].sum()
        shares = (self._shares[rows] / images)[:, None]
        current = (torch.arange(len(shares), device=shares.device) == batch - rows.start)[:, None]
        means = torch.where(current, moments[0], self.mean[rows, columns])
        variances = torch.where(current, moments[1], self.variance[rows, columns])
        mean = (shares * means).sum(0)
        return mean, (shares * (variances + (means - mean).square())).sum(0), images

    def _group(self, batch: int, scope: Scope) -> slice:
        """The batches whose images are matched together with those of a batch."""
        several = len(self.sizes) if isinstance(scope, str) else scope // self.sizes[0]
        first = batch // several * several
        return slice(first, first + several)

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        return {"store.mean": self.mean, "store.variance": self.variance}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self.mean.copy_(state["store.mean"])
        self.variance.copy_(state["store.variance"])
