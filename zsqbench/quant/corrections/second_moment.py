"""Second moment correction (HPTQ, arXiv 2109.09113): restore the mean and deviation of the folded norm in outputs."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rescaling(NamedTuple):
    """A factor and a summand for each output channel: y * scale + shift."""

    scale: Tensor
    shift: Tensor


def second_moment_correction(
    mean: Tensor, variance: Tensor, beta: Tensor, gamma: Tensor, *, eps: float = 1e-8
) -> Rescaling:
    """The scale and shift that give a layer's output the mean beta and the deviation |gamma| of its folded batch norm.

    `mean` and `variance` are those of the output of the layer with quantized weights, all of shape [out]. Fold the
    result with `W * scale` and `b * scale + shift`. A channel without variance (at most eps), before or after, keeps
    its scale and only gets the mean.
    """
    alive = (variance > eps) & (gamma.square() > eps)
    scale = torch.where(alive, gamma.abs() / variance.clamp(min=eps).sqrt(), torch.ones_like(gamma))
    return Rescaling(scale, beta - scale * mean)
