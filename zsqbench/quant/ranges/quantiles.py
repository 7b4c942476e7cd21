"""Ranges that end at quantiles, found by the search of RepQ-ViT's released code (Li et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zsqbench.quant.grids.affine import Affine, affine_parameters, fake_quantize
from zsqbench.quant.grids.logarithmic import round_logarithmically
from zsqbench.quant.ranges.observers import as_rows

SHARES = (0.999, 0.9999, 0.99999)
"""The quantiles that searches try."""


def quantiles(rows: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """The quantiles [C] of each row of [C, n], interpolated linearly between the two nearest values, as in numpy.

    Positions are computed in float64, and rows may have any length. `torch.quantile` does not offer this.
    """
    ordered = rows.sort(dim=1).values
    found = []
    for share in shares:
        position = share * (rows.shape[1] - 1)
        below = int(position)
        above = min(below + 1, rows.shape[1] - 1)
        found.append(torch.lerp(ordered[:, below], ordered[:, above], position - below))
    return found


def quantile_search(x: Tensor, bits: int, axis: int | None = None, shares: Sequence[float] = SHARES) -> Affine:
    """The affine grid from quantile 1 - p to quantile p with the least mean squared error, the first p of equals.

    One grid, or one for each channel along the axis. A grid need not hold zero, and then its zero point is not a code.
    A channel with a single value v other than zero gets a grid that holds v.
    """
    rows = as_rows(x.detach(), axis)
    ends = quantiles(rows, [*shares, *(1.0 - share for share in shares)])
    pairs = zip(ends[: len(shares)], ends[len(shares) :], strict=True)
    grids = [affine_parameters(low, high, bits) for high, low in pairs]
    rounded = (fake_quantize(rows, scale[:, None], zero_point[:, None], bits) for scale, zero_point in grids)
    errors = torch.stack([(each - rows).square().mean(1) for each in rounded])
    best = errors.argmin(0, keepdim=True)  # the first of equals
    scale, zero_point = (torch.stack(each).gather(0, best)[0] for each in zip(*grids, strict=True))
    return Affine(scale[0], zero_point[0]) if axis is None else Affine(scale, zero_point)


def top_search(values: Tensor, bits: int, shares: Sequence[float] = SHARES) -> Tensor:
    """The top of the logarithmic grid with the least mean squared error, the first of equals, among quantiles."""
    tops = quantiles(as_rows(values.detach(), None), shares)
    errors = [(round_logarithmically(values, top[0], bits) - values).square().mean() for top in tops]
    return tops[int(torch.stack(errors).argmin())][0]
