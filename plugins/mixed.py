"""Mixed precision by sensitivity: weights that a network is most sensitive to get more bits than the scheme says."""

import glob
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

import zsqbench
from zsqbench.scheme import RankedWeight, Scheme
from zsqbench.widths import MAX_BITS, MIN_BITS, PatternWidths

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext

MB = 1e6
_BYTE = 8


def _number_or_part(layers: float) -> float:
    if layers < 0 or (isinstance(layers, float) and not 0 < layers < 1):
        raise ValueError("expected a number of weights, or a part of all weights between 0 and 1")
    return layers


Layers = Annotated[int | float, AfterValidator(_number_or_part)]
"""A number of weights, as an integer, or a part of all weights, between 0 and 1 (both excluded)."""


class Mixed(zsqbench.Quantizer):
    """Another quantizer, at a scheme in which the most sensitive weights have more bits.

    The harness ranks weights before (the step `sensitivity`). It rounds each weight alone to nearest at the scheme's
    bits and measures the squared error of the raw outputs on calibration images. No label is used. The first `layers`
    weights get `bits`; `layers` is a number, or a part of all weights. With `budget`, each weight in this order that
    still fits gets `bits`. Activations and all other weights keep the scheme's bits. The quantizer `over` then works as
    at a scheme that names these weights. The ranking reads images even if `over` reads none (`squant`, `dfq`), so a
    cell needs a generator.

    Deviations: this is no paper's method. Weights are ranked one by one, and the sum of their errors is ignored. HAWQ
    weighs curvature, and others solve for all widths together. `over` may change weights before it rounds them (`dfq`,
    `hptq`). The ranking is that of the unchanged network.
    """

    name = "mixed"
    seeded = False

    over: str = Field(description="name in the suite of the quantizer that does the work")
    layers: Layers | None = Field(
        None,
        description="number of weights that get more bits; below 1: their share of all weights; unset: budget decides",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="upper bound of the size of all weights in MB (10^6 bytes), without scales; unset: layers decides",
    )
    bits: int = Field(8, ge=MIN_BITS, le=MAX_BITS, description="bits of the most sensitive weights")
    images: int = Field(
        32, gt=0, description="calibration images on which sensitivity is measured, the first of the set"
    )

    @model_validator(mode="after")
    def _check_how_many(self) -> Self:
        if (self.layers is None) == (self.budget is None):
            given = "neither" if self.layers is None else "both"
            raise ValueError(f"expected exactly one of layers and budget, got {given}")
        return self

    @property
    def ranking_images(self) -> int:
        """The number of images in the option `images`."""
        return self.images

    def rejects(self, scheme: Scheme) -> str | None:
        """Reject a scheme that has these bits already. The grids that it demands concern the quantizer `over`."""
        if scheme.is_float:
            return super().rejects(scheme)
        if self.bits <= scheme.weight_bits:
            return f"its option bits is {self.bits}, and the scheme's weights have {scheme.weight_bits} already"
        return None

    def adapted(self, scheme: Scheme, weights: Sequence[RankedWeight]) -> Scheme:
        """The scheme with a pattern for each weight that gets more bits. These patterns come before all others."""
        tensors = dict(scheme.placement.tensors)
        for weight in self.chosen(scheme, weights):
            pattern = glob.escape(weight.name)
            if pattern in tensors:  # its place, and its value for activations, stay
                pattern = f"[{weight.name[0]}]{glob.escape(weight.name[1:])}"
            tensors[pattern] = PatternWidths(weight=self.bits)
        return scheme.model_copy(update={"placement": scheme.placement.model_copy(update={"tensors": tensors})})

    def chosen(self, scheme: Scheme, weights: Sequence[RankedWeight]) -> list[RankedWeight]:
        """The weights that get more bits. Raises ZSQBenchError where there are too few, or too many for the budget."""
        candidates = [weight for weight in weights if weight.bits < self.bits]
        if isinstance(self.layers, float):
            return candidates[: round(self.layers * len(candidates))]
        if self.layers is not None:
            if self.layers > len(candidates):
                raise zsqbench.ZSQBenchError(
                    f"{self.name}: layers is {self.layers}, and {len(candidates)} weights of the network have less "
                    f"than {self.bits} bits at {scheme.name}; expected at most {len(candidates)}"
                )
            return candidates[: self.layers]
        budget, taken = (self.budget or 0.0) * MB * _BYTE, sum(weight.bits * weight.elements for weight in weights)
        if taken > budget:
            raise zsqbench.ZSQBenchError(
                f"{self.name}: budget is {self.budget:g} MB, and the weights have {taken / _BYTE / MB:.6g} MB at "
                f"{scheme.name} already; give more, or a scheme with fewer bits"
            )
        fitting = []
        for weight in candidates:
            more = (self.bits - weight.bits) * weight.elements
            if taken + more <= budget:
                taken += more
                fitting.append(weight)
        return fitting

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Run the quantizer `over`. Raises ZSQBenchError where the context has none."""
        if ctx.over is None:
            raise zsqbench.ZSQBenchError(
                f"quantizer {self.name!r} needs {self.over!r}, which does the work, and its context has no ctx.over"
            )
        needs_images = ctx.over.needs_images
        ctx.over.quantize(student, teacher, data if needs_images else None, ctx)
        if data is not None and not (needs_images and ctx.read is None):  # no number in ctx.read: `over` read all
            ctx.images_read(min(self.images, len(data)))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `mixed`."""
    return [Mixed]
