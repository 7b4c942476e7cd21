"""AdaRound: Up or Down? Adaptive Rounding for Post-Training Quantization (Nagel et al., ICML 2020)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import nn

    from zsqbench import CalibrationSet, Pretrained, StepContext

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"iterations": 10_000, "annealing": "cosine", "draws": "permutation"},
    "released": {"iterations": 20_000, "annealing": "linear", "draws": "epoch"},
}


class AdaRound(zsqbench.ReconstructionQuantizer):
    """Learns layer by layer whether each weight is rounded up or down; the scales stay fixed.

    For each layer, in execution order, it minimizes || f(W x) - f(W~ x^) ||^2 + lambda sum(1 - |2 h(V) - 1|^beta),
    where x is the layer's input in the float network, x^ that behind the layers that are already rounded, and f the
    activation function that follows. Activations stay float meanwhile, and their ranges are searched at the end.

    The default preset is `released`: the layer mode of DGH's port of BRECQ, which its options call similar to AdaRound
    (20,000 iterations, beta annealed on a line, batches in turn through a permutation). `paper` is 10,000 iterations
    with beta annealed by a cosine, as in AIMET, the library of AdaRound's authors, whose text could not be looked up.

    Deviations: a layer whose rounding was learned to a larger loss on the calibration images than rounding to nearest
    has, is rounded to nearest, which a note says. The code behind AdaRound's rows in DGH's Table 3 is not released.
    BRECQ's code, which DGH's is a port of, initialises scales by the same search; DGH's adds 1e-8 to each, and neither
    widens a range to hold zero. A layer that the network calls several times is learned at its first call.
    """

    name = "adaround"
    grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")

    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    iterations: int | None = Field(None, ge=0, description="iterations for each layer")
    annealing: Literal["linear", "cosine"] | None = Field(None, description="how beta falls from 20 to 2")
    warmup: float = Field(0.2, ge=0, le=1, description="part of the iterations without regulariser")
    lr: float = Field(1e-3, gt=0, description="learning rate of the rounding variables (Adam)")
    rounding_weight: float = Field(0.01, ge=0, description="lambda, the weight of the regulariser")
    grid: Grid | None = Field(None, description="kind of grid; none: what the scheme demands, else affine")
    per_channel: bool = Field(True, description="a grid for each output channel of a weight, or one for the weight")
    activation_range: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="how activation ranges are chosen"
    )
    search_images: int = Field(512, gt=0, description="images that activation ranges are chosen on, unless minmax")

    def chosen(self, option: str) -> Any:
        """The value of an option, given or the preset's."""
        value = getattr(self, option)
        return PRESETS[self.preset][option] if value is None else value

    def rejects(self, scheme: Scheme) -> str | None:
        """A grid of its own that is not the one that the scheme demands."""
        demanded = scheme.placement.grid
        if self.grid is not None and demanded not in (None, self.grid):
            return f"the scheme demands the grid {demanded}, and its option grid is {self.grid}"
        return super().rejects(scheme)

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "nn.Module":
        """Put quantizers of this kind of grid in place."""
        from zsqbench.quant import Grids, prepare

        grid = self.grid or scheme.placement.grid or "affine"
        return prepare(teacher.module, scheme, teacher.input_size, Grids(grid, grid, self.per_channel))

    def quantize(
        self,
        student: "nn.Module",
        teacher: "Pretrained",  # noqa: ARG002
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Learn the rounding of each layer, then choose activation ranges. Raises ZSQBenchError without images."""
        from zsqbench.quant import (
            Annealing,
            Recipe,
            Reconstruction,
            Rounding,
            calibrate_activations_by,
            calibrate_weights,
            memory_errors,
        )

        if data is None:
            raise zsqbench.ZSQBenchError("quantizer 'adaround' needs calibration images: its generator cannot be none")
        calibrate_weights(student, "mse")
        recipe = Recipe(
            self.chosen("iterations"),
            self.batch_size,
            rounding=Rounding(
                self.lr, self.rounding_weight, Annealing(warmup=self.warmup, shape=self.chosen("annealing"))
            ),
            draws=PRESETS[self.preset]["draws"],
        )
        memory = self.memory(ctx.device)
        Reconstruction(student, data.images, ctx, {"weights": recipe}, grain="layer", memory=memory).run("weights")
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            calibrate_activations_by(self.activation_range, student, data.images, self.search_images)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `adaround`."""
    return [AdaRound]
