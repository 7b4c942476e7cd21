"""Generators whose images are shifted and flipped at random on their way to the network: DeepInversion's loop."""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.methods.work import STEP
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext

BETAS = 0.5, 0.9
"""betas of Adam in the code of DeepInversion and of PSAQ-ViT."""

JITTER, SIDE = 30, 224
"""Largest shift of images in pixels, and the side of those images."""


@dataclass(frozen=True)
class JitteredBatch:
    """The images of a batch in one iteration."""

    images: "Tensor"
    """Images as the network sees them, shifted and perhaps flipped [n, C, H, W]."""
    pixels: "Tensor"
    """The optimised images, before shift and flip; the result consists of them."""
    labels: "Tensor"
    """int64 [n], or float32 [n, classes] where soft labels were given."""
    number: int
    """The number of the batch, from 0."""


class JitteredGenerator(zsqbench.Generator, ABC):
    """A generator of images of random classes, whose pixels stay valid.

    In each iteration the images of a batch are rolled and, with probability one half, flipped, all alike. The loss is
    measured on these images. The rate rises, then falls along a cosine, again in each phase, while Adam's moments go
    on. Phase p of P shifts by p/P of `jitter` at most. After each step pixels are clipped to the valid range.
    """

    needs_classes = True
    gives_labels = True
    memory_options = ("batch_size",)
    one_shift: ClassVar[bool] = False
    """True if images are shifted by as many pixels down as to the right."""

    images: int = Field(256, gt=0, description="size of the calibration set")
    batch_size: int = Field(64, gt=0, description="images optimised together")
    iterations: int = Field(2000, gt=0, description="Adam steps of each phase, for each batch")
    phases: int = Field(
        1, gt=0, description="number of times that the learning rate rises and falls, with larger shifts each time"
    )
    warmup: int = Field(100, ge=0, description="steps of a phase in which the learning rate rises")
    jitter: Auto[int] = auto(ge=0, description="largest shift of images in pixels; unset: 30 of 224, in proportion")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, and shifts in proportion to the images."""
        return {**super().automatic(network, scheme), "jitter": round(JITTER * max(network.input_size[1:]) / SIDE)}

    def work(self, images: int) -> float:
        """All phases."""
        return super().work(images) + (self.phases - 1) * STEP * self.iterations * images

    def classes_of(self, teacher: "Pretrained") -> int:
        """The network's number of classes. Raises ZSQBenchError for a network that is not a classifier."""
        if teacher.classes is None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} makes images of classes, and the network has none")
        return teacher.classes

    def synthesize(
        self,
        teacher: "Pretrained",
        ctx: "StepContext",
        losses: "Callable[[JitteredBatch], tuple[Tensor, Mapping[str, Tensor]]]",
        lr: float,
        *,
        state: Mapping[str, Any],
        labels: "Tensor | None" = None,
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> "CalibrationSet":
        """Images with their labels; options must be resolved.

        `losses` gives the loss of a batch, and scalars to log. `state` is the result of `ctx.resume`, or None. `keep`
        returns further entries of a checkpoint. `labels`, on the CPU, are those of the images; without them, one class
        is drawn for each image.

        Raises ZSQBenchError for a network that is not a classifier, and DivergedError where a loss is not finite.
        """
        import torch

        from zsqbench.synthesis import PixelBatch, WarmedCosine, batch_sizes, optimize

        sizes, steps = batch_sizes(self.images, self.batch_size), self.phases * self.iterations
        drawn = (
            {name: state[name] for name in ("labels", "shifts", "flips")} if state else self._draw(teacher, ctx, labels)
        )
        of_batches = torch.split(drawn["labels"].to(ctx.device), self.batch_size)
        shifts, flips = drawn["shifts"].tolist(), drawn["flips"].tolist()
        low, high = (bound.to(ctx.device) for bound in teacher.valid_range())

        def begin(batch: int, pixels: "Tensor | None") -> PixelBatch:
            if pixels is None:
                pixels = ctx.randn(sizes[batch], *teacher.input_size)
            rate = WarmedCosine(lr, self.iterations, warmup=self.warmup)
            return PixelBatch(pixels.to(ctx.device), torch.optim.Adam, rate, steps, betas=BETAS)

        def of_jittered(pixels: "Tensor", step: int) -> "tuple[Tensor, Mapping[str, Tensor]]":
            number = step // steps
            seen = jittered(pixels, shifts[step], flip=flips[step])
            return losses(JitteredBatch(seen, pixels, of_batches[number], number))

        def clip(pixels: "Tensor", _: int) -> None:
            with torch.no_grad():
                torch.clamp(pixels, low, high, out=pixels)

        order = [batch for batch in range(len(sizes)) for _ in range(steps)]
        made = optimize(order, begin, of_jittered, ctx, state, stepped=clip, keep=lambda: {**drawn, **keep()})
        images = torch.cat([pixels.cpu() for pixels in made])
        return zsqbench.CalibrationSet(images, drawn["labels"], provenance={"lr": lr, "jitter": self.jitter})

    def _draw(self, teacher: "Pretrained", ctx: "StepContext", labels: "Tensor | None" = None) -> "dict[str, Tensor]":
        """Labels, and the shifts [steps, 2] and flips of all steps, on the CPU, so that no step waits for a GPU."""
        import torch

        if labels is None:
            labels = torch.randint(self.classes_of(teacher), (self.images,), generator=ctx.rng, device=ctx.device)
        batches = -(-self.images // self.batch_size)
        phase = torch.arange(self.phases * self.iterations) // self.iterations + 1
        most = ((self.jitter or 0) * phase // self.phases).repeat(batches)[:, None]
        places = ctx.rand(len(most), 1 if self.one_shift else 2).cpu()
        shifts = (places * (2 * most + 1)).floor().long().minimum(2 * most) - most  # 1 - 2^-24 may round up to 1
        flips = ctx.rand(len(most)).cpu() < 0.5  # noqa: PLR2004 - a half
        return {"labels": labels.cpu(), "shifts": shifts.expand(-1, 2).contiguous(), "flips": flips}


def jittered(pixels: "Tensor", shift: tuple[int, int], *, flip: bool) -> "Tensor":
    """Images [N, C, H, W], rolled by so many pixels down and to the right, then flipped from left to right or not."""
    rolled = pixels.roll(tuple(shift), (2, 3))
    return rolled.flip(3) if flip else rolled
