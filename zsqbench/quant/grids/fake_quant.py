"""Modules that simulate integer arithmetic: quantizers of tensors, and the layers whose weights pass through one.

A learned method uses its own rounding: it assigns a subclass to `layer.weight_quantizer` (AdaRound), or replaces an
activation quantizer (LSQ). `finalize` keeps scale, zero point and integer weights.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench.compat import padding_of
from zsqbench.quant.grids.affine import (
    dequantize,
    fake_quantize,
    grid_parameters,
    levels,
    quantize,
    symmetric_parameters,
)
from zsqbench.quant.grids.transposed import TransposedConv2d
from zsqbench.scheme import Grid, LogGrid

Q = TypeVar("Q", bound="TensorQuantizer")

HALVES = (torch.float16, torch.bfloat16)
BYTE = 8

SMALLEST_STEP = 1e-3
"""A learned scale stays above this part of its first value, because an optimiser could move it through zero."""


class TensorQuantizer(nn.Module):
    """Rounds one tensor of a network to a grid. Neutral (the identity) until it is calibrated.

    `scale` and `zero_point` have shape [] per tensor, or broadcast along `axis`. A scale of zero means "not
    calibrated".
    """

    scale: Tensor
    zero_point: Tensor
    kind: str

    def __init__(
        self, name: str, role: str, bits: int, *, grid: Grid = "affine", axis: int | None, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.name = name
        self.role = role
        self.bits = bits
        self.grid: Grid = grid
        self.axis = axis
        self.enabled = False
        """True if it quantizes. Calibration switches it on, and any pass may switch it off for a while."""
        self.clips_first = False
        """How its gradient ends beyond the grid, see `fake_quantize`."""
        self.register_buffer("scale", torch.zeros(shape))
        self.register_buffer("zero_point", torch.zeros(shape))

    def description(self) -> dict[str, Any]:
        """The arguments for another quantizer of the same tensor with the same kind of grid."""
        shape = tuple(self.scale.shape)
        names = ("name", "role", "bits", "grid", "axis")
        return {name: getattr(self, name) for name in names} | {"shape": shape}

    @property
    @abstractmethod
    def plain_kind(self) -> "type[TensorQuantizer]":
        """The class that rounds to nearest on this kind of grid. Artifacts hold it."""

    @property
    def grid_name(self) -> Grid | LogGrid:
        """The name of the grid in schemes."""
        return self.grid

    def adopt(self, other: "TensorQuantizer") -> None:
        """Take the grid of another quantizer, on its device, and start to quantize."""
        self.to(other.scale.device)
        self.set_parameters(other.scale.detach(), other.zero_point.detach())

    def is_signed(self, low: Tensor) -> bool:
        """True if a symmetric grid for values from `low` on must be signed."""
        return bool((low < 0).any())

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take the finest grid that spans these ranges (scalars, or one per channel), and start to quantize."""
        self.set_parameters(*grid_parameters(low, high, self.bits, self.grid, self.is_signed(low)))

    def set_threshold(self, threshold: Tensor, *, signed: bool) -> None:
        """Take the symmetric grid of a threshold (a scalar, or one per channel), and start to quantize."""
        self.set_parameters(*symmetric_parameters(threshold, self.bits, signed))

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take scales and zero points (scalars, or one per channel), and start to quantize."""
        self.scale.copy_(scale.view_as(self.scale))
        self.zero_point.copy_(zero_point.view_as(self.zero_point))
        self.enabled = True

    def range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of the grid, in the shape of the scale."""
        return ((0 - self.zero_point) * self.scale, (levels(self.bits) - self.zero_point) * self.scale)

    def threshold(self) -> Tensor:
        """The threshold t of a symmetric grid: its end below zero, or one step above its end if it has no sign."""
        steps: Tensor = 2**self.bits - self.zero_point
        return steps * self.scale

    def unclamped_codes(self, x: Tensor) -> Tensor:
        """The codes of x in floating point. Values beyond the grid have codes below 0 or above the last code."""
        return (x / self.scale).round_().add_(self.zero_point)

    def largest_multiple(self) -> int:
        """Q_P of LSQ (Esser et al., ICLR 2020): the number of steps of a symmetric grid above zero.

        It is 2^(b-1) - 1 for a signed symmetric grid, and 2^b - 1 for an unsigned one. LSQ has no affine grids. QDrop
        takes 2^b - 1, all steps, for these.
        """
        above = levels(self.bits) if self.grid == "affine" else levels(self.bits) - self.zero_point.max().item()
        return int(above)

    def check(self) -> None:
        """Raise RuntimeError if it was never calibrated, or is not on a finite grid of its kind."""
        what = f"the {self.kind} quantizer of {self.name!r}"
        if not (torch.isfinite(self.scale).all() and torch.isfinite(self.zero_point).all()):
            raise RuntimeError(f"{what} has a scale or zero point that is not finite")
        if not (self.scale > 0).all():
            raise RuntimeError(f"{what} was not calibrated")
        if self.grid == "power_of_two" and not (torch.frexp(self.scale).mantissa == 0.5).all():  # noqa: PLR2004
            raise RuntimeError(f"{what} has a scale that is not a power of two, which its grid demands")

    def forward(self, x: Tensor) -> Tensor:
        """X on the grid, of the same shape."""
        if not self.enabled:
            return x
        if x.dtype in HALVES:  # codes need more precision than autocast's activations have
            x = x.float()
        return fake_quantize(x, self.scale, self.zero_point, self.bits, clips_first=self.clips_first)

    def extra_repr(self) -> str:
        """The text that `print(student)` shows."""
        return f"{self.role}, bits={self.bits}, grid={self.grid_name}, axis={self.axis}"


class WeightQuantizer(TensorQuantizer):
    """Rounds a weight to the nearest point of its grid."""

    kind = "weight"

    @property
    def plain_kind(self) -> "type[WeightQuantizer]":
        """The name of the grid of the quantizer that chose its codes."""
        return WeightQuantizer

    def is_signed(self, low: Tensor) -> bool:  # noqa: ARG002
        """Weights have both signs."""
        return True

    def codes(self, weight: Tensor) -> Tensor:
        """The integers that the finalized layer keeps, in floating point. Override it together with `forward`."""
        return quantize(weight, self.scale, self.zero_point, self.bits)

    def check(self) -> None:
        """Raise RuntimeError also if the zero point of a symmetric grid is not in the middle."""
        super().check()
        middle = 2 ** (self.bits - 1)
        if self.grid != "affine" and not (self.zero_point == middle).all():
            raise RuntimeError(
                f"the weight quantizer of {self.name!r} has a zero point other than {middle}, which its grid "
                f"{self.grid} demands"
            )


class ChosenCodes(WeightQuantizer):
    """A weight whose codes a method chose (up or down, by a loss) on the grid of another quantizer."""

    chosen: Tensor
    values: Tensor

    def __init__(self, quantizer: WeightQuantizer, codes: Tensor) -> None:
        super().__init__(**quantizer.description())
        self.adopt(quantizer)
        self.register_buffer("chosen", codes.detach())
        self.register_buffer("values", dequantize(self.chosen, self.scale, self.zero_point))

    def codes(self, weight: Tensor) -> Tensor:  # noqa: ARG002
        """The codes that were chosen."""
        return self.chosen

    def forward(self, x: Tensor) -> Tensor:
        """The values of the codes, in the shape of x."""
        return self.values if self.enabled else x


class ActivationQuantizer(TensorQuantizer):
    """Rounds an activation to the nearest point of its grid."""

    kind = "activation"
    is_held = False
    """True if the scheme sets its grid. Then calibration and learning do not change it."""

    @property
    def plain_kind(self) -> "type[ActivationQuantizer]":
        """The name of the grid of the quantizer that learned its step size."""
        return ActivationQuantizer

    def hold(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take a fixed grid. It rounds as soon as a method sets a range."""
        super().set_parameters(scale, zero_point)
        self.enabled, self.is_held = False, True

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take a scale and a zero point, unless the grid is held, and start to quantize."""
        if self.is_held:
            self.enabled = True
        else:
            super().set_parameters(scale, zero_point)


def plain(quantizer: Q) -> Q:
    """A quantizer that rounds to nearest on another quantizer's grid, without data that only training needs."""
    copy = quantizer.plain_kind(**quantizer.description())
    copy.adopt(quantizer)
    return cast("Q", copy)


class QuantizedLayer(nn.Module):
    """A layer whose weight passes through `weight_quantizer`. After `finalize`, its weight is integers.

    Output channels of weight and codes are on axis 0, in every kind of layer.
    """

    output_axis: ClassVar[int] = 0
    """The axis of output channels in the weight of torch's layer. Tensor maps hold it."""
    weight: Tensor
    weight_quantizer: WeightQuantizer
    weight_codes: Tensor

    @property
    def is_finalized(self) -> bool:
        """True if the float weight was dropped."""
        return "weight_codes" in self._buffers

    def stored_weight(self) -> Tensor:
        """The codes of a finalized layer, otherwise the float weight."""
        return self.weight_codes if self.is_finalized else self.weight

    @abstractmethod
    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for x with another weight, in the layout of its codes, and another bias."""

    @abstractmethod
    def unfolded(self, x: Tensor) -> Tensor:
        """The values of x that the weights of an output channel multiply: [N, groups, weights, places].

        Except for the bias, the output is weight.view(groups, -1, weights) times this. Weights have the order of
        `weight.flatten(1)`.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The output of torch's layer for x with the quantized weight."""
        return self.computed(x, self.quantized_weight(), cast("nn.Parameter | None", self.bias))

    def quantized_weight(self) -> Tensor:
        """The quantized weight in floating point, as used by the layer."""
        quantizer = self.weight_quantizer
        if self.is_finalized:
            return dequantize(self.weight_codes, quantizer.scale, quantizer.zero_point)
        return cast("Tensor", quantizer(self.weight))

    def choose(self, codes: Tensor) -> None:
        """Use these codes 0 .. 2^b - 1 on the present grid, instead of rounding to nearest. Float weights stay."""
        # in the weight's order in memory, because the order of a convolution's sums depends on it
        self.weight_quantizer = ChosenCodes(self.weight_quantizer, torch.empty_like(self.weight).copy_(codes))

    def keep(self, codes: Tensor) -> None:
        """Replace the float weight by codes of its shape, kept as uint8 up to 8 bits and as int32 above."""
        dtype = torch.uint8 if self.weight_quantizer.bits <= BYTE else torch.int32
        self.register_buffer("weight_codes", codes.to(dtype))
        self.register_parameter("weight", None)
        self.weight_quantizer = plain(self.weight_quantizer)


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A one-dimensional convolution with a quantized weight [out, in / groups, length]."""

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x [N, C, L] with a weight."""
        return cast("Tensor", self._conv_forward(x, weight, bias))

    def unfolded(self, x: Tensor) -> Tensor:
        """The values of x [N, C, L] that each weight multiplies: [N, groups, in / groups * length, places]."""
        padded = _padded(self, x)[:, :, None]
        taps = functional.unfold(padded, (1, *self.kernel_size), (1, *self.dilation), stride=(1, *self.stride))
        return _by_groups(taps, self.groups)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution with a quantized weight [out, in / groups, height, width]."""

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x [N, C, H, W] with a weight."""
        return cast("Tensor", self._conv_forward(x, weight, bias))

    def unfolded(self, x: Tensor) -> Tensor:
        """The values of x [N, C, H, W] for each weight: [N, groups, in / groups * height * width, places]."""
        taps = functional.unfold(_padded(self, x), self.kernel_size, self.dilation, stride=self.stride)
        return _by_groups(taps, self.groups)


class QuantizedConvTranspose2d(QuantizedLayer, TransposedConv2d):
    """A transposed convolution with a quantized weight in a convolution's layout, [out, in / groups, height, width]."""

    output_axis = 1

    def computed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """The output of torch's layer for x [N, C, H, W] with a weight."""
        return self.convolve(x, weight, bias, output_size)

    def unfolded(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The values of x [N, C, H, W] for each weight: [N, groups, in / groups * height * width, places]."""
        return _by_groups(self.taps(x, output_size), self.groups)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output with the quantized weight."""
        return self.computed(x, self.quantized_weight(), self.bias, output_size)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A linear layer with a quantized weight [out, in]."""

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply x [..., in] with a weight."""
        return functional.linear(x, weight, bias)

    def unfolded(self, x: Tensor) -> Tensor:
        """The values of x [..., in] that each weight multiplies: [1, 1, in, places]."""
        return x.flatten(0, -2).T[None, None]


def _by_groups(taps: Tensor, groups: int) -> Tensor:
    return taps.view(len(taps), groups, -1, taps.shape[2])


def _padded(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """X with the padding of a convolution."""
    return functional.pad(x, padding_of(layer), "constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def quantized_layer(
    layer: nn.Module, name: str, role: str, bits: int, *, grid: Grid = "affine", per_channel: bool = True
) -> QuantizedLayer:
    """The layer with a weight quantizer, not calibrated, per output channel (axis 0) or for the whole weight.

    The layer is an nn.Linear, nn.Conv1d, nn.Conv2d or `TransposedConv2d`. The result has the bias itself, and a copy of
    the weight, because a weight that two layers tie is quantized for each.
    """
    quantized, weight = _empty_copy(layer), cast("nn.Parameter", layer.weight)
    quantized.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    quantized.bias = layer.bias
    shape = (len(weight),) + (1,) * (weight.dim() - 1) if per_channel else ()
    quantizer = WeightQuantizer(name, role, bits, grid=grid, axis=0 if per_channel else None, shape=shape)
    quantized.weight_quantizer = quantizer.to(weight.device)
    return quantized.train(layer.training)


def _empty_copy(layer: nn.Module) -> QuantizedLayer:
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer.in_features, layer.out_features, device="meta")
    if isinstance(layer, TransposedConv2d):
        return QuantizedConvTranspose2d.like(layer)
    convolution = cast("nn.Conv1d | nn.Conv2d", layer)
    # torch annotates its own attributes more widely than its own arguments
    geometry: tuple[Any, Any, Any, Any] = (
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )
    kind = QuantizedConv1d if isinstance(layer, nn.Conv1d) else QuantizedConv2d
    return kind(
        convolution.in_channels,
        convolution.out_channels,
        *geometry,
        groups=convolution.groups,
        padding_mode=convolution.padding_mode,
        device="meta",
    )
