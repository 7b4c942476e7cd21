"""Generators that use a transformer's attention, with PSAQ-ViT's loop: rates, shifts and total variation."""

import math
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator
from zsqbench_plugins.shared.jittered import JitteredGenerator

import zsqbench
from zsqbench.methods.generator import lack_of_attention

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import Pretrained, StepContext
    from zsqbench.quant import Attention

LR, LR_OF_WINDOWS = 0.20, 0.25
"""Learning rates of PSAQ-ViT's release, for DeiT and for Swin."""

RELEASED_BATCH = 32, 3, 224, 224
"""Shape of the images for which the release draws a target of total variation."""


class AttentionGenerator(JitteredGenerator, ABC):
    """A generator of images of classes that uses a network's attention, with PSAQ-ViT's loop.

    It has two phases of 500 iterations, with shifts by up to 15 and 30 pixels, as many down as to the right. The total
    variation of a batch is pulled to a target, which is drawn once.
    """

    needs_attention = True
    one_shift = True

    images: int = Field(32, gt=0, description="size of the calibration set")
    batch_size: int = Field(32, gt=0, description="images optimised together")
    iterations: int = Field(500, gt=0, description="Adam steps of each phase, for each batch")
    phases: int = Field(
        2, gt=0, description="number of times that the learning rate rises and falls, with larger shifts each time"
    )
    lr: float | None = Field(
        None, gt=0, lt=1e30, description="highest learning rate of Adam; unset: 0.25 for windows, 0.20 for others"
    )
    class_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy towards the wanted labels")
    variation_weight: float = Field(0.05, ge=0, description="weight of the gap between total variation and its target")
    least_variation: float = Field(
        2500.0, ge=0, description="smallest target of total variation, for 32 images of 224 x 224 pixels"
    )
    most_variation: float = Field(
        3000.0, ge=0, description="largest target of total variation, for 32 images of 224 x 224 pixels"
    )

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.least_variation > self.most_variation:
            raise ValueError(
                f"least_variation {self.least_variation:g} is above most_variation {self.most_variation:g}"
            )
        return self

    def captured(self, teacher: "Pretrained") -> "tuple[fx.GraphModule, list[Attention]]":
        """A captured copy of the network, and its attention in each block.

        Raises ZSQBenchError for a network that cannot be captured, and where capture cannot take its attention apart.
        Also raises it where patches do not fill the image.
        """
        from zsqbench.quant import capture, find_attention, patch_size

        captured = capture(teacher.module, teacher.input_size)
        found, network = find_attention(captured), type(teacher.module).__name__
        lack = lack_of_attention(len(found), patch_size(captured) or (), teacher.input_size, network)
        if lack is not None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} {lack}")
        return captured, found

    def highest_rate(self, found: "Sequence[Attention]") -> float:
        """The highest learning rate, for a network with this attention."""
        return self.lr or (LR_OF_WINDOWS if any(each.windows > 1 for each in found) else LR)

    def draw_target(self, ctx: "StepContext") -> float:
        """Draw a total variation for the release's images."""
        return self.least_variation + float(ctx.rand(1)) * (self.most_variation - self.least_variation)


def aimed_variation(target: float, shape: Sequence[int]) -> float:
    """A target of total variation for images [N, C, H, W], as strict as this target is for the release's images.

    It is in proportion to the roots of the numbers of differences.
    """
    return target * strength(shape) / strength(RELEASED_BATCH)


def strength(shape: Sequence[int]) -> float:
    """The total variation of images [N, C, H, W] in which differences of neighbours have a root mean square of 1."""
    count, channels, height, width = shape
    across, down, slanted = height * (width - 1), (height - 1) * width, (height - 1) * (width - 1)
    return sum(math.sqrt(count * channels * number) for number in (across, down, slanted, slanted))
