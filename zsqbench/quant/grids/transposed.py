"""Transposed convolutions with the weight layout of a convolution, so that output channels are on axis 0."""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional


class TransposedConv2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a weight [out, in / groups, height, width]. torch's weight is [in, out / groups, ...].

    Grids of channels, folding, equalization, corrections and learned rounding read it like any convolution's weight.
    """

    @classmethod
    def like(cls, layer: nn.ConvTranspose2d) -> Self:
        """A layer of the same geometry and mode, with the same bias, and a weight on device meta to be replaced."""
        plain: Any = layer  # torch annotates its own attributes more widely than its own arguments
        copied = cls(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            plain.stride,
            plain.padding,
            plain.output_padding,
            groups=plain.groups,
            dilation=plain.dilation,
            device="meta",
        )
        copied.bias = layer.bias
        return copied.train(layer.training)

    @classmethod
    def of(cls, layer: nn.ConvTranspose2d) -> Self:
        """The layer in this layout. It shares the bias and copies the weight."""
        weight = turned(layer.weight.detach(), layer.groups).clone()
        copied = cls.like(layer)
        copied.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        return copied

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output of torch's layer for x [N, C, H, W]."""
        return self.convolve(x, self.weight, self.bias, output_size)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int] | None) -> Tensor:
        """The output with another weight [out, in / groups, height, width] and another bias."""
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        usual = turned(weight, self.groups)
        beyond = self._beyond(x, output_size)
        return functional.conv_transpose2d(x, usual, bias, stride, padding, beyond, self.groups, dilation)

    def taps(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The values of x that each weight of an output channel multiplies: [N, in * height * width, places].

        A transposed convolution is a convolution of x with zeros between its values, with the kernel turned round.
        """
        (high, wide), (step_y, step_x) = x.shape[2:], self.stride
        spread = x.new_zeros(*x.shape[:2], (high - 1) * step_y + 1, (wide - 1) * step_x + 1)
        spread[:, :, ::step_y, ::step_x] = x
        sides: list[int] = []
        for axis, more in reversed(list(enumerate(self._beyond(x, output_size)))):
            before = self.dilation[axis] * (self.kernel_size[axis] - 1) - int(self.padding[axis])
            sides += [before, before + more]
        kernel: Any = self.kernel_size
        dilation: Any = self.dilation
        found = functional.unfold(functional.pad(spread, sides), kernel, dilation)
        return found.view(*x.shape[:2], *kernel, -1).flip(2, 3).flatten(1, 3)

    def _beyond(self, x: Tensor, output_size: Sequence[int] | None) -> Any:
        """The additional rows and columns at the ends of the output."""
        kernel: Any = self.kernel_size
        return self._output_padding(x, output_size, self.stride, self.padding, kernel, len(kernel), self.dilation)  # type: ignore[arg-type]


def turned(weight: Tensor, groups: int) -> Tensor:
    """[in, out / groups, ...] as [out, in / groups, ...], group by group. It also inverts itself."""
    return weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()
