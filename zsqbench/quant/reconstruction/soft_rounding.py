"""Learned rounding of each weight up or down: AdaRound's relaxation, and GENIE's with learned scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zsqbench.quant.grids.affine import levels, within
from zsqbench.quant.grids.fake_quant import SMALLEST_STEP, WeightQuantizer
from zsqbench.quant.reconstruction.rounding import LearnedRounding, ParameterGroup

GAMMA, ZETA = -0.1, 1.1
"""The sigmoid is stretched to these ends and clipped to [0, 1], so that it reaches both."""


@dataclass(frozen=True)
class Annealing:
    """Beta of the regulariser: None during the warm-up, then from start to end."""

    start: float = 20.0
    end: float = 2.0
    warmup: float = 0.2
    """Part of the iterations without regulariser."""
    shape: Literal["linear", "cosine"] = "linear"

    def __call__(self, step: int, iterations: int) -> float | None:
        """Beta at a step, counted from 1; None during the warm-up."""
        first = self.warmup * iterations
        if step < first:
            return None
        done = (step - first) / max(iterations - first, 1e-9)
        left = max(0.0, 1 - done) if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.end + (self.start - self.end) * left


@dataclass(frozen=True)
class Rounding:
    """Settings of weights that learn to round up or down, by `SoftRounding`."""

    lr: float = 1e-3
    regularizer: float = 0.01
    annealing: Annealing = field(default_factory=Annealing)
    scale_lr: float | None = None
    """Rate with which the weights' scales also learn, annealed by a cosine (GENIE-M)."""

    def __call__(self, quantizer: WeightQuantizer, weight: Tensor) -> "SoftRounding":
        """The parameters that learn the rounding of a weight."""
        return SoftRounding(quantizer, weight, self)


class SoftRounding(LearnedRounding):
    """A weight whose rounding is being learned: W~ = s (clip(floor(W / s) + h(V) + z, 0, 2^b - 1) - z).

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), and V starts where W~ = W (AdaRound, Nagel et al., ICML 2020). `logits` is
    V. With a `scale_lr` the scale outside of the floor is trained too, and floor(W / s) keeps its initial value (GENIE,
    Jeon et al., CVPR 2023).
    """

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, settings: Rounding | None = None) -> None:
        super().__init__(quantizer)
        self._settings = settings or Rounding()
        ratio = weight.detach() / self.scale
        below = ratio.floor()
        fraction = (ratio - below).sub_(GAMMA)
        self.logits = nn.Parameter(-torch.log((ZETA - GAMMA) / fraction - 1))
        base = below.add_(self.zero_point)
        # h has no effect where the floor, or the ceiling, is beyond the grid
        self._open = (base >= 0) & (base < levels(self.bits))
        self._base = base.clamp_(0, levels(self.bits))
        if self._settings.scale_lr is not None:
            self._lowest = SMALLEST_STEP * self.scale
            self.scale.requires_grad_()
        else:
            self._step = self._open * self.scale
            self._lower = (self._base - self.zero_point) * self.scale

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """V and, if it learns, the scale."""
        groups = [ParameterGroup([self.logits], self._settings.lr)]
        if self._settings.scale_lr is not None:
            groups.append(ParameterGroup([self.scale], self._settings.scale_lr, is_annealed=True))
        return groups

    def codes(self, weight: Tensor) -> Tensor:  # noqa: ARG002
        """The codes of the logits: the floor, plus one where V >= 0."""
        return self._base + (self._open & (self.logits.detach() >= 0))

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight, of the shape of x."""
        if not self.enabled:
            return x
        if self.scale.requires_grad:
            moved = (self._base - self.zero_point) + self._open * rectified_sigmoid(self.logits)
            return moved * self.scale
        soft: Tensor = _SoftWeight.apply(self.logits, self._lower, self._step)
        return soft

    def regularize(self, iteration: int, iterations: int) -> None:
        """Pull h(V) to 0 and 1, more and more after the warm-up."""
        beta = self._settings.annealing(iteration, iterations)
        if beta is not None:
            self.add_regularizer_gradient(self._settings.regularizer, beta)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep a learned scale above zero."""
        if self._settings.scale_lr is not None:
            torch.maximum(self.scale, self._lowest, out=self.scale)

    @torch.no_grad()
    def add_regularizer_gradient(self, weight: float, beta: float) -> None:
        """Add weight times the gradient of sum(1 - |2 h(V) - 1|^beta), zero at h of 0 or 1, in closed form."""
        soft = torch.sigmoid(self.logits)
        slope = soft * (1 - soft)
        centred = soft.mul_(2 * (ZETA - GAMMA)).add_(2 * GAMMA - 1)  # 2 h - 1, before h is clipped
        slope.mul_(within(centred, -1, 1))
        # |t|^(beta - 1) as 2^((beta - 1) log2 |t|): a third of the time of pow
        power = centred.abs().log2_().mul_(beta - 1).exp2_().copysign_(centred)
        power.mul_(slope).mul_(-2 * beta * (ZETA - GAMMA) * weight)
        if self.logits.grad is None:
            self.logits.grad = power
        else:
            self.logits.grad.add_(power)


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """h(V) in [0, 1]."""
    return (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class _SoftWeight(torch.autograd.Function):
    """lower + step * h(V). The backward pass keeps one tensor and uses it in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, lower: Tensor, step: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(logits)
        ctx.save_for_backward(sigmoid, step)
        soft = (sigmoid * (ZETA - GAMMA)).add_(GAMMA).clamp_(0, 1)
        return soft.mul_(step).add_(lower)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        sigmoid, step = ctx.saved_tensors
        stretched = (sigmoid * (ZETA - GAMMA)).add_(GAMMA)
        gradient = (1 - sigmoid).mul_(sigmoid).mul_(ZETA - GAMMA).mul_(step).mul_(gradients[0])
        return gradient.mul_(within(stretched, 0, 1)), None, None
