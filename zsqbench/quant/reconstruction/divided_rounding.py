"""Learned rounding of weights, each divided by its own number before it is rounded: FlexRound's parametrization."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zsqbench.quant.grids.affine import levels, within
from zsqbench.quant.grids.fake_quant import SMALLEST_STEP, WeightQuantizer
from zsqbench.quant.reconstruction.rounding import LearnedRounding, ParameterGroup

_MATRIX = 2


@dataclass(frozen=True)
class Division:
    """Settings of weights that learn their divisors before rounding, by `DividedRounding`."""

    lr: float = 1e-3
    scale_lr: float | None = 1e-3
    """Rate with which the grid's step also learns."""
    is_annealed: bool = True
    """True if both rates fall to zero by a cosine."""

    def __call__(self, quantizer: WeightQuantizer, weight: Tensor) -> "DividedRounding":
        """The parameters that learn the rounding of a weight."""
        return DividedRounding(quantizer, weight, self)


class DividedRounding(LearnedRounding):
    """A weight whose rounding is learned by division: W^ = s1 (clip(round(W / (s1 S2 s3 s4)) + z, 0, 2^b - 1) - z).

    FlexRound (Lee et al., ICML 2023). `scale` is the grid's step s1. `elements` is S2, one number for each weight.
    `outputs` is s3, one for each output channel. `inputs` is s4, one for each input channel of a convolution, and None
    for a linear layer. Divisors begin with 1, which is rounding to nearest, and stay above a thousandth. The zero point
    stays. Gradients pass the rounding unchanged. They are zero beyond the last codes, but pass a code on the end.
    """

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, settings: Division | None = None) -> None:
        super().__init__(quantizer)
        self._settings = settings or Division()
        dimensions = weight.dim()
        self.elements = nn.Parameter(torch.ones_like(weight))
        self.outputs = nn.Parameter(weight.new_ones(len(weight), *[1] * (dimensions - 1)))
        inputs = weight.new_ones(1, weight.shape[1], *[1] * (dimensions - 2)) if dimensions > _MATRIX else None
        self.inputs = None if inputs is None else nn.Parameter(inputs)
        self._lowest = SMALLEST_STEP * self.scale
        if self._settings.scale_lr is not None:
            self.scale.requires_grad_()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """S2, s3 and s4 and, if it learns, s1."""
        settings = self._settings
        groups = [ParameterGroup(self._divisors(), settings.lr, settings.is_annealed)]
        if settings.scale_lr is not None:
            groups.append(ParameterGroup([self.scale], settings.scale_lr, settings.is_annealed))
        return groups

    def codes(self, weight: Tensor) -> Tensor:
        """The codes of the weight with the current divisors."""
        steps = weight / (self.scale.detach() * _divisor(*(each.detach() for each in self._divisors())))
        return steps.round_().add_(self.zero_point).clamp_(0, levels(self.bits))

    def forward(self, x: Tensor) -> Tensor:
        """The rounded weight, of the shape of x, differentiable to all learned parameters."""
        if not self.enabled:
            return x
        values: Tensor = _Divided.apply(x, self.scale, self.zero_point, self.bits, *self._divisors())
        return values

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the step and all divisors above zero. A negative divisor would change a weight's sign."""
        for divisor in self._divisors():
            divisor.clamp_(min=SMALLEST_STEP)
        if self._settings.scale_lr is not None:
            torch.maximum(self.scale, self._lowest, out=self.scale)

    def _divisors(self) -> list[Tensor]:
        return [self.elements, self.outputs, *([] if self.inputs is None else [self.inputs])]


def _divisor(elements: Tensor, *channels: Tensor) -> Tensor:
    """S2 s3 s4, of the weight's shape."""
    product = elements
    for channel in channels:
        product = product * channel
    return product


class _Divided(torch.autograd.Function):
    """One function. Its clip lets gradients pass on its bounds, and compares the clipped integers."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *divisors: Tensor) -> Tensor:
        steps = weight / (scale * _divisor(*divisors))
        codes = steps.round().add_(zero_point)
        top = float(levels(bits))
        steps = steps * within(codes, 0, top)
        codes = codes.clamp(0, top) - zero_point
        ctx.save_for_backward(steps, scale, codes, *divisors)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        steps, scale, codes, *divisors = ctx.saved_tensors
        (gradient,) = gradients
        to_scale = (gradient * (codes - steps)).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        to_logarithm = (gradient * steps).mul_(-scale)  # for any divisor: d W^ / d log S
        to_divisors = [to_logarithm.sum_to_size(divisor.shape) / divisor for divisor in divisors]
        return None, to_scale, None, None, *to_divisors
