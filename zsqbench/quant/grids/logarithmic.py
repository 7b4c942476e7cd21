"""The grid on powers of the square root of two: x' = top 2^(-q/2) for codes q < 2^b, and zero for all below.

It is not affine. A zero besides the 2^b codes makes it one value larger than b bits hold, as in RepQ-ViT's released
code (Li et al., ICCV 2023); hardware computes with it by shifts whose scale alternates between two numbers.
"""

from typing import Any

import torch
from torch import Tensor

from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import HALVES, ActivationQuantizer, TensorQuantizer
from zsqbench.scheme import LogGrid


def round_logarithmically(x: Tensor, top: Tensor, bits: int) -> Tensor:
    """X on the grid, of the same shape: above `top` it is `top`, and below the last code, or below zero, it is zero."""
    beyond = levels(bits) + 1  # a code more, for zero
    codes = _nearest_codes(x, top).clamp_(0, beyond)
    steps = torch.arange(beyond + 1, dtype=x.dtype, device=x.device)
    # taken from a table: vectorised powers of the same exponent differ in their last bits
    values = torch.where(
        steps == beyond, 0.0, top * torch.exp2(-steps.div(2, rounding_mode="floor")) * 0.5 ** (steps % 2 / 2)
    )
    return values.to(x.dtype)[codes.long()]


class LogQuantizer(ActivationQuantizer):
    """Rounds an activation of 0 and more to powers of the square root of two below a top, which `scale` holds.

    The grid is a matter of the scheme: its top is found by `top_search` on the first values that calibration shows it,
    whatever the method, and neither changes nor learns. Gradients pass unchanged. No ONNX operator expresses it.
    """

    is_held = True

    @property
    def plain_kind(self) -> "type[LogQuantizer]":
        """Nothing of it is for training."""
        return LogQuantizer

    @property
    def grid_name(self) -> LogGrid:
        """As schemes name it."""
        return "log_sqrt2"

    def adopt(self, other: TensorQuantizer) -> None:
        """Take the top of another quantizer of this kind, on its device, and start to quantize."""
        self.to(other.scale.device)
        self.scale.copy_(other.scale.detach())
        self.enabled = True

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:  # noqa: ARG002
        """Start to quantize; the parameters are those of an affine grid, which this is none."""
        self.enabled = True

    def set_top(self, top: Tensor) -> None:
        """Take the largest value of the grid (a scalar), and start to quantize."""
        self.scale.copy_(top.clamp_min(torch.finfo(top.dtype).tiny))
        self.enabled = True

    def range(self) -> tuple[Tensor, Tensor]:
        """Zero and the top."""
        return torch.zeros_like(self.scale), self.scale

    def unclamped_codes(self, x: Tensor) -> Tensor:
        """The codes of x in floating point, below 0 above the top; zero, and what becomes zero, has the last code."""
        return _nearest_codes(x, self.scale).clamp_(max=levels(self.bits))

    def forward(self, x: Tensor) -> Tensor:
        """X on the grid, of the same shape."""
        if not self.enabled:
            return x
        rounded: Tensor = _Rounded.apply(x.float() if x.dtype in HALVES else x, self.scale, self.bits)
        return rounded


def _nearest_codes(x: Tensor, top: Tensor) -> Tensor:
    """The codes of x, below 0 above the top; infinity for zero and below."""
    return (-2 * torch.log2(x / top)).round_().nan_to_num_(torch.inf, posinf=torch.inf)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, top: Tensor, bits: int) -> Tensor:  # noqa: ARG004
        return round_logarithmically(x, top, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return gradients[0], None, None
