"""Bases of generators that optimise pixels: their common options and their loop."""

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zsqbench.methods import Generator

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench.methods import Pretrained, StepContext


class PixelGenerator(Generator, ABC):
    """A generator that optimises pixels with Adam, batch after batch, and cuts the learning rate on a plateau."""

    needs_bn = True
    memory_options = ("batch_size",)

    images: int = Field(5120, gt=0, description="size of the calibration set")
    batch_size: int = Field(256, gt=0, description="images optimised together; they share the learning-rate schedule")
    iterations: int = Field(1000, gt=0, description="Adam steps for each batch")
    lr: float = Field(0.5, gt=0, lt=1e30, description="learning rate of Adam")
    factor: float = Field(0.1, gt=0, lt=1, description="factor of the learning rate on a plateau")
    patience: int = Field(50, ge=0, description="iterations without a better loss that make a plateau")
    min_lr: float = Field(1e-4, ge=0, description="smallest learning rate")

    def batch_sizes(self) -> list[int]:
        """The number of images of each batch. The last may have fewer."""
        from zsqbench.synthesis import batch_sizes

        return batch_sizes(self.images, self.batch_size)

    def optimize(
        self,
        teacher: "Pretrained",
        ctx: "StepContext",
        losses: "Callable[[Tensor, int], tuple[Tensor, Mapping[str, Tensor]]]",
        state: Mapping[str, Any],
        *,
        initial: "Callable[[tuple[int, ...], StepContext], Tensor] | None" = None,
        stepped: "Callable[[Tensor, int], None]" = lambda *_: None,
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> "Tensor":
        """Optimised pixels [N, C, H, W], on the CPU, from the last step.

        `losses` gives the loss of a batch's pixels at a step, and scalars to log; step s belongs to batch s //
        iterations. `state` is the result of `ctx.resume`, or empty. Pixels start as normal noise unless `initial` makes
        others. `stepped` and `keep` are those of `zsqbench.synthesis.optimize`.

        Raises DivergedError where a loss is not finite.
        """
        import torch

        from zsqbench.synthesis import PixelBatch, Plateau, optimize

        sizes = self.batch_sizes()

        def begin(batch: int, pixels: "Tensor | None") -> PixelBatch:
            if pixels is None:
                shape = (sizes[batch], *teacher.input_size)
                pixels = ctx.randn(*shape) if initial is None else initial(shape, ctx)
            plateau = Plateau(self.lr, self.factor, self.patience, self.min_lr)
            return PixelBatch(pixels.to(ctx.device), torch.optim.Adam, plateau, self.iterations)

        order = [batch for batch in range(len(sizes)) for _ in range(self.iterations)]
        made = optimize(order, begin, losses, ctx, state, stepped=stepped, keep=keep)
        return torch.cat([pixels.cpu() for pixels in made])
