"""Activation ranges from GDFQ's generator, as in the releases of IntraQ and HAST."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import Pretrained, StepContext

RELEASED_RANGE_UPDATES = 800
"""Batches over which the releases average ranges, while a generator learns."""


class GeneratorRangesQuantizer(zsqbench.SetTrainingQuantizer, ABC):
    """A quantizer that trains on a calibration set, and learns activation ranges from it or from a generator's images.

    The releases of IntraQ and HAST train GDFQ's generator for the ranges. They do not use its images for anything else.
    """

    range_source: Literal["calibration", "generator"] = Field(
        "calibration",
        description="source of the images of activation ranges: the set, or a generator that is trained meanwhile",
    )
    range_updates: Auto[int] = auto(
        gt=0, description="batches over which ranges are averaged; unset: 200, or 800 of a generator, as released"
    )

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, and the number of batches for the source of ranges."""
        found = super().automatic(network, scheme)
        return {**found, "range_updates": RELEASED_RANGE_UPDATES} if self.range_source == "generator" else found

    def batches_for_ranges(
        self, teacher: "Pretrained", ctx: "StepContext", draw: "Callable[[int], Tensor]", size: int
    ) -> "Iterator[Tensor]":
        """Batches of the set, or the batches on which the generator learns.

        Raises ZSQBenchError where a generator is trained against a network that is not a classifier.
        """
        if self.range_source == "calibration":
            yield from super().batches_for_ranges(teacher, ctx, draw, size)
            return
        from zsqbench_plugins.shared.gdfq_generator import gdfq_training

        from zsqbench.synthesis import HAST, BNLoss

        with BNLoss(teacher.module, HAST) as bn_loss:
            training = gdfq_training(bn_loss, teacher, size, ctx.rng, method=self.name)
            yield from training.images(self.range_updates)
