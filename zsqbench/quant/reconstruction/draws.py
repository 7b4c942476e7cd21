"""Random draws of reconstruction: images of batches, and values that stay float."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zsqbench.quant.context import LearningContext
from zsqbench.quant.reconstruction.stage import Draws


def draw(count: int, size: int, how: Draws, ctx: LearningContext) -> Iterator[Tensor]:
    """Indices of endless batches."""
    while True:
        if how == "replacement":
            yield torch.randint(count, (size,), generator=ctx.rng, device=ctx.device)
            continue
        order = torch.randperm(count, generator=ctx.rng, device=ctx.device)
        for start in range(0, size if how == "permutation" else count - size + 1, size):
            yield order[start : start + size]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def keep_mask(shape: torch.Size, probability: float, ctx: LearningContext) -> Tensor:
    """A mask that is true with this probability."""
    if probability != 0.5:  # noqa: PLR2004 - for the published 0.5, one bit of each byte is enough
        return torch.rand(shape, generator=ctx.rng, device=ctx.device) < probability
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=ctx.device).random_(generator=ctx.rng)
    return words.view(torch.uint8)[:count].bitwise_and_(1).view(torch.bool).view(shape)


def select(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """torch.where of a mask and two tensors of its shape, with its gradients, bit for bit.

    On a CPU it takes a fifth of the time, because torch.where reads truth values one by one, forward and backward.
    """
    plain = torch.compiler.is_compiling() or mask.device.type != "cpu"
    if plain or {chosen.dtype, other.dtype} != {torch.float32} or chosen.shape != mask.shape:
        return torch.where(mask, chosen, other)
    selected: Tensor = _Selected.apply(mask, chosen, other)
    return selected


class _Selected(torch.autograd.Function):
    """Takes the bits of one tensor or of the other. All bits of a number are set where the mask is true."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
        bits = mask.view(torch.int8).to(torch.int32).neg_()
        ctx.save_for_backward(bits)
        first, second = chosen.view(torch.int32), other.view(torch.int32)
        return (first ^ second).bitwise_and_(bits).bitwise_xor_(second).view(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (bits,) = ctx.saved_tensors
        gradient = gradients[0].view(torch.int32)
        chosen = gradient & bits
        return None, chosen.view(torch.float32), (gradient ^ chosen).view(torch.float32)
