"""Swing convolutions: inputs of strided convolutions are shifted by up to a pixel, so that no pixel is preferred."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class SwingConvolutions:
    """Shifts the input of each strided Conv2d of a network, at random, while the block lasts.

    After GENIE (Jeon et al., CVPR 2023). Gradients through a stride reach some pixels more often than others, which
    leaves a checkerboard. The input is padded by one reflected pixel on each side, then cropped to its size at an
    offset of 0 to 2 in each direction; 1 is no shift. Each call of a layer has its own offset, the same for the whole
    batch. A map that is one pixel high or wide has nothing to reflect and is not shifted in this direction.

    `draw` returns the requested number of offsets, x and y: int64 [count, 2] on the device of the images. It is called
    once for all layers, by the method `draw` or at the first call, and again where layers are called more than once.
    Offsets are only read on the device of the images. So no GPU is waited for, and a compiled pass is compiled once.
    """

    def __init__(self, module: nn.Module, draw: Callable[[int], Tensor]) -> None:
        self._layers = [part for part in module.modules() if isinstance(part, nn.Conv2d) and part.stride != (1, 1)]
        self._draw = draw
        self._resources = ExitStack()
        self._upcoming: list[Tensor] = []

    def __enter__(self) -> Self:
        for layer in self._layers:
            self._resources.callback(layer.register_forward_pre_hook(self._shift).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def draw(self) -> None:
        """Draw for the next pass. Call it before each pass, because offsets of the earlier pass may be left."""
        self._upcoming = list(self._draw(len(self._layers))) if self._layers else []

    def _shift(self, _: nn.Module, inputs: tuple[Tensor, *tuple[Any, ...]]) -> tuple[Any, ...]:
        if not self._upcoming:
            self.draw()
        values, *others = inputs
        return shifted(values, self._upcoming.pop(0)), *others


def shifted(values: Tensor, offset: Tensor) -> Tensor:
    """Maps [..., H, W], padded by a reflected pixel on each side and cropped to H x W at an offset (x, y) of 0 to 2."""
    moved: Tensor = _shift(values, offset) if torch.compiler.is_compiling() else _shifted(values, offset)
    return moved


def _shifted(values: Tensor, offset: Tensor) -> Tensor:
    """Shift by a crop; or by picking rows and columns.

    Picking is needed on a GPU, where a crop cannot read the offset, and for a line, which has nothing to reflect. Rows
    and columns are picked twice at most, so sums of gradients have no order that could change them.
    """
    height, width = values.shape[-2:]
    if values.device.type == "cpu" and min(height, width) > 1:
        left, top = offset.tolist()
        return functional.pad(values, (1, 1, 1, 1), mode="reflect")[..., top : top + height, left : left + width]
    return values.index_select(-2, _sources(height, offset[1])).index_select(-1, _sources(width, offset[0]))


def _sources(size: int, offset: Tensor) -> Tensor:
    """The source of each position of a line."""
    places = (torch.arange(size, device=offset.device) + (offset - 1)).abs()
    return (size - 1 - (size - 1 - places).abs()).clamp_min(0)


# A compiler would turn picking, and the computation of its indices, into scalar loops, so it sees one operation.
@torch.library.custom_op("zsqbench::shift", mutates_args=())
def _shift(values: Tensor, offset: Tensor) -> Tensor:
    return torch.empty_like(values).copy_(_shifted(values, offset))


@torch.library.custom_op("zsqbench::shift_back", mutates_args=())
def _shift_back(gradient: Tensor, offset: Tensor) -> Tensor:
    height, width = gradient.shape[-2:]
    if gradient.device.type == "cpu" and min(height, width) > 1:
        left, top = offset.tolist()
        padded = functional.pad(gradient, (left, 2 - left, top, 2 - top))
        result = torch.ops.aten.reflection_pad2d_backward(padded, gradient, (1, 1, 1, 1))
        return torch.empty_like(gradient).copy_(result)
    columns = torch.zeros_like(gradient).index_add_(-1, _sources(width, offset[0]), gradient)
    return torch.zeros_like(gradient).index_add_(-2, _sources(height, offset[1]), columns)


@_shift.register_fake
@_shift_back.register_fake
def _(values: Tensor, _: Tensor) -> Tensor:
    return torch.empty_like(values)


def _keep_offset(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[1])


def _go_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _shift_back(gradient, *ctx.saved_tensors), None


_shift.register_autograd(_go_back, setup_context=_keep_offset)
