"""Reconstruction draws the images of batches, and which values stay float."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from zsqbench.quant.context import LearningContext
from zsqbench.quant.reconstruction.stage import Draws


def draw(count: int, size: int, how: Draws, ctx: LearningContext) -> Iterator[Tensor]:
    """Indices of batch after batch, without end."""
    while True:
        if how == "replacement":
            yield torch.randint(count, (size,), generator=ctx.rng, device=ctx.device)
            continue
        order = torch.randperm(count, generator=ctx.rng, device=ctx.device)
        for start in range(0, size if how == "permutation" else count - size + 1, size):
            yield order[start : start + size]


@_disable_dynamo  # torch.compiler.disable, which waits with a long import until it is called
def keep_mask(shape: torch.Size, probability: float, ctx: LearningContext) -> Tensor:
    """A mask that is true with this probability."""
    if probability != 0.5:  # noqa: PLR2004 - the published one, for which a bit of each byte is enough
        return torch.rand(shape, generator=ctx.rng, device=ctx.device) < probability
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=ctx.device).random_(generator=ctx.rng)
    return words.view(torch.uint8)[:count].bitwise_and_(1).view(torch.bool).view(shape)
