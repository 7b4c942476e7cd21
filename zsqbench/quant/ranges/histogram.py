"""Histograms of activations, gathered batch by batch in one pass over the data (as in MCT, the code of HPTQ)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

BINS = 2048

# Elements that are binned at a time: on a CPU as many as fit into its cache, elsewhere as many as fill the device.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**26

_NARROWEST = 2.0**-100  # below it BINS / width overflows in float32
_WIDENED = 2.0**-16


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins between the smallest and the largest value, on the CPU for values on any device.

    Merging splits counts between bins, so counts are not integers. A constant tensor gets the range from zero to its
    value, and a tensor of zeros a range of 2^-16.
    """

    low: float
    high: float
    counts: Tensor
    """[BINS], float64."""

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """The histogram of a tensor of any shape and device. Raises ValueError if a value is NaN or infinite."""
        values = x.detach().reshape(-1)
        low, high = torch.stack(torch.aminmax(values)).tolist()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"a histogram needs finite values, but these go from {low} to {high}")
        if low == high:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low < _NARROWEST:
            high = low + _WIDENED
        counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)
        for part in torch.split(values, _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK):
            position = (part.float() if part.dtype in {torch.float16, torch.bfloat16} else part) - low
            # Bins as int16 and counts as integers: twice as fast as torch.histc, whose float32 counts stop at 2^24.
            position.mul_(BINS / (high - low)).clamp_(max=BINS - 1)
            counts += torch.bincount(position.to(torch.int16), minlength=BINS)
        return cls(low, high, counts.cpu().double())

    @property
    def edges(self) -> Tensor:
        """[BINS + 1], float64, rounded to float32, the precision of MCT's search."""
        return torch.from_numpy(np.linspace(self.low, self.high, BINS + 1).astype(np.float32)).double()

    @property
    def left_edges(self) -> Tensor:
        """[BINS], the value that represents each bin."""
        return self.edges[:-1]

    @property
    def is_signed(self) -> bool:
        """True if a bin that is not empty starts below zero."""
        return bool((self.left_edges[self.counts > 0] < 0).any())

    @property
    def mean(self) -> float:
        """Mean of the left edges."""
        return float(self.left_edges @ self.counts / self.counts.sum())

    @property
    def std(self) -> float:
        """Standard deviation of the left edges."""
        return float(((self.left_edges - self.mean).square() @ self.counts / self.counts.sum()).sqrt())

    def merged(self, other: Self) -> Self:
        """The joint histogram, by linear interpolation of the cumulative counts on the bins of the joint range."""
        merged = type(self)(min(self.low, other.low), max(self.high, other.high), torch.zeros_like(self.counts))
        for part in (self, other):
            merged.counts.add_(part._resampled(merged))  # noqa: SLF001 - of the same class
        return merged

    def without_outliers(self, z: float) -> Self:
        """The same bins. Bins whose left edge is more than z standard deviations from the mean are emptied."""
        kept = (self.left_edges - self.mean).abs() <= z * self.std
        return type(self)(self.low, self.high, self.counts * kept)

    def _resampled(self, grid: Self) -> Tensor:
        if (self.low, self.high) == (grid.low, grid.high):
            return self.counts
        cumulative = np.concatenate([[0.0], self.counts.cumsum(0).numpy()])
        return torch.from_numpy(np.diff(np.interp(grid.edges.numpy(), self.edges.numpy(), cumulative)))


class RunningHistogram:
    """The histogram of all batches so far, in the memory of one histogram."""

    def __init__(self) -> None:
        self.histogram: Histogram | None = None

    def update(self, x: Tensor) -> Histogram:
        """Add a batch of any shape, and return the histogram of all. Raises ValueError if a value is not finite."""
        histogram = Histogram.of(x)
        self.histogram = histogram if self.histogram is None else self.histogram.merged(histogram)
        return self.histogram
