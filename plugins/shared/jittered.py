"""Generators whose images are shifted and flipped at random on their way to the network: DeepInversion's loop."""

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.methods.generator import lack_of_attention
from zsqbench.methods.work import STEP
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Attention

BETAS = 0.5, 0.9
"""Of Adam, in the code of DeepInversion and of PSAQ-ViT."""

JITTER, SIDE = 30, 224
"""Pixels that images are shifted by at most, and the side of those images."""


class JitteredGenerator(zsqbench.Generator, ABC):
    """A generator of images of classes that are drawn at random, whose pixels are kept valid.

    In each iteration the images of a batch are rolled and, every other time, flipped, all alike; what is minimised is
    measured there. The rate rises, then falls along a cosine, again in each phase, while Adam's moments go on. Phase p
    of P shifts by p/P of `jitter` at most. After each step pixels are clipped to what an image can have.
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
        1, gt=0, description="how often the learning rate rises and falls, with larger shifts each time"
    )
    warmup: int = Field(100, ge=0, description="steps of a phase in which the learning rate rises")
    jitter: Auto[int] = auto(
        ge=0, description="pixels that images are shifted by at most; by default 30 of 224, in proportion"
    )

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, and shifts in proportion to the images."""
        return {**super().automatic(network, scheme), "jitter": round(JITTER * max(network.input_size[1:]) / SIDE)}

    def work(self, images: int) -> float:
        """All phases."""
        return super().work(images) + (self.phases - 1) * STEP * self.iterations * images

    def synthesize(
        self,
        teacher: "Pretrained",
        ctx: "StepContext",
        losses: "Callable[[Tensor, Tensor], tuple[Tensor, Mapping[str, Tensor]]]",
        lr: float,
        *,
        state: Mapping[str, Any],
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> "CalibrationSet":
        """Images with their labels, of options that are resolved.

        `losses` gives for images as the network sees them and their labels [n] what is minimised, and scalars to log.
        `state` is what `ctx.resume` returned, if anything; `keep` says what else belongs into a checkpoint.

        Raises ZSQBenchError for a network that is no classifier, and DivergedError where a loss is not finite.
        """
        import torch

        from zsqbench.synthesis import PixelBatch, WarmedCosine, batch_sizes, optimize

        if teacher.classes is None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} makes images of classes, and the network has none")
        sizes, steps = batch_sizes(self.images, self.batch_size), self.phases * self.iterations
        drawn = {name: state[name] for name in ("labels", "shifts", "flips")} if state else self._draw(teacher, ctx)
        of_batches = torch.split(drawn["labels"].to(ctx.device), self.batch_size)
        shifts, flips = drawn["shifts"].tolist(), drawn["flips"].tolist()
        low, high = (bound.to(ctx.device) for bound in teacher.valid_range())

        def begin(batch: int, pixels: "Tensor | None") -> PixelBatch:
            if pixels is None:
                pixels = ctx.randn(sizes[batch], *teacher.input_size)
            rate = WarmedCosine(lr, self.iterations, warmup=self.warmup)
            return PixelBatch(pixels.to(ctx.device), torch.optim.Adam, rate, steps, betas=BETAS)

        def of_jittered(pixels: "Tensor", step: int) -> "tuple[Tensor, Mapping[str, Tensor]]":
            return losses(jittered(pixels, shifts[step], flip=flips[step]), of_batches[step // steps])

        def clip(pixels: "Tensor", _: int) -> None:
            with torch.no_grad():
                torch.clamp(pixels, low, high, out=pixels)

        order = [batch for batch in range(len(sizes)) for _ in range(steps)]
        made = optimize(order, begin, of_jittered, ctx, state, stepped=clip, keep=lambda: {**drawn, **keep()})
        images = torch.cat([pixels.cpu() for pixels in made])
        return zsqbench.CalibrationSet(images, drawn["labels"], provenance={"lr": lr, "jitter": self.jitter})

    def _draw(self, teacher: "Pretrained", ctx: "StepContext") -> "dict[str, Tensor]":
        """Labels, and the shifts [steps, 2] and flips of all steps, on the CPU, so that no step waits for a GPU."""
        import torch

        labels = torch.randint(teacher.classes or 1, (self.images,), generator=ctx.rng, device=ctx.device)
        batches = -(-self.images // self.batch_size)
        phase = torch.arange(self.phases * self.iterations) // self.iterations + 1
        most = ((self.jitter or 0) * phase // self.phases).repeat(batches)[:, None]
        places = ctx.rand(len(most), 1 if self.one_shift else 2).cpu()
        shifts = (places * (2 * most + 1)).floor().long().minimum(2 * most) - most  # 1 - 2^-24 may round up to 1
        flips = ctx.rand(len(most)).cpu() < 0.5  # noqa: PLR2004 - a half
        return {"labels": labels.cpu(), "shifts": shifts.expand(-1, 2).contiguous(), "flips": flips}


class AttentionGenerator(JitteredGenerator, ABC):
    """A generator of such images that looks at a network's attention."""

    needs_attention = True

    def captured(self, teacher: "Pretrained") -> "tuple[fx.GraphModule, list[Attention]]":
        """A captured copy of the network, and its attention in each block.

        Raises ZSQBenchError for a network that cannot be captured, has no attention that capture takes apart, or has
        patches that do not fill the image.
        """
        from zsqbench.quant import capture, find_attention, patch_size

        captured = capture(teacher.module, teacher.input_size)
        found, network = find_attention(captured), type(teacher.module).__name__
        lack = lack_of_attention(len(found), patch_size(captured) or (), teacher.input_size, network)
        if lack is not None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} {lack}")
        return captured, found


def jittered(pixels: "Tensor", shift: tuple[int, int], *, flip: bool) -> "Tensor":
    """Images [N, C, H, W], rolled by so many pixels down and to the right, then flipped from left to right or not."""
    rolled = pixels.roll(tuple(shift), (2, 3))
    return rolled.flip(3) if flip else rolled
