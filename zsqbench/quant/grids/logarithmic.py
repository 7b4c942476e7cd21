"""The grid on powers of the square root of two: x' = top 2^(-q/2) for codes q < 2^b, and zero for smaller values.

It is not affine. It has a zero besides the 2^b codes, so it has one value more than b bits hold, as in RepQ-ViT's
released code (Li et al., ICCV 2023). Hardware computes with it by shifts whose scale alternates between two numbers.
"""

from typing import Any

import torch
from torch import Tensor

from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import HALVES, ActivationQuantizer, TensorQuantizer
from zsqbench.scheme import LogGrid


def round_logarithmically(x: Tensor, top: Tensor, bits: int) -> Tensor:
    """X on the grid, of the same shape. Above `top` it is `top`. Below the last code, or below zero, it is zero."""
    beyond = levels(bits) + 1  # one more code, for zero
    codes = _nearest_codes(x, top).clamp_(0, beyond)
    steps = torch.arange(beyond + 1, dtype=x.dtype, device=x.device)
    # from a table, because vectorised powers of the same exponent differ in their last bits
    values = torch.where(
        steps == beyond, 0.0, top * torch.exp2(-steps.div(2, rounding_mode="floor")) * 0.5 ** (steps % 2 / 2)
    )
    return values.to(x.dtype)[codes.long()]


class LogQuantizer(ActivationQuantizer):
    """Rounds a non-negative activation to powers of the square root of two below a top, which `scale` holds.

    The scheme sets the grid. For every method, `top_search` finds its top on the first values that calibration shows.
    The top neither changes nor learns. Gradients pass unchanged. ONNX has no operator for it.
    """

    is_held = True

    @property
    def plain_kind(self) -> "type[LogQuantizer]":
        """The same class, because it has no data for training."""
        return LogQuantizer

    @property
    def grid_name(self) -> LogGrid:
        """The name of the grid in schemes."""
        return "log_sqrt2"

    def adopt(self, other: TensorQuantizer) -> None:
        """Take the top of another quantizer of this kind, on its device, and start to quantize."""
        self.to(other.scale.device)
        self.scale.copy_(other.scale.detach())
        self.enabled = True

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:  # noqa: ARG002
        """Start to quantize. The parameters belong to an affine grid, so they are not used."""
        self.enabled = True

    def set_top(self, top: Tensor) -> None:
        """Take the largest value of the grid (a scalar), and start to quantize."""
        self.scale.copy_(top.clamp_min(torch.finfo(top.dtype).tiny))
        self.enabled = True

    def range(self) -> tuple[Tensor, Tensor]:
        """Zero and the top."""
        return torch.zeros_like(self.scale), self.scale

    def unclamped_codes(self, x: Tensor) -> Tensor:
        """Codes of x in floating point, below 0 above the top. Zero, and values that become zero, have the last one."""
        return _nearest_codes(x, self.scale).clamp_(max=levels(self.bits))

    def forward(self, x: Tensor) -> Tensor:
        """X on the grid, of the same shape."""
        if not self.enabled:
            return x
        rounded: Tensor = _Rounded.apply(x.float() if x.dtype in HALVES else x, self.scale, self.bits)
        return rounded


def _nearest_codes(x: Tensor, top: Tensor) -> Tensor:
    """The codes of x, below 0 above the top. Infinity for zero and below."""
    return (-2 * torch.log2(x / top)).round_().nan_to_num_(torch.inf, posinf=torch.inf)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, top: Tensor, bits: int) -> Tensor:  # noqa: ARG004
        return round_logarithmically(x, top, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return gradients[0], None, None
