"""AdaRound: Up or Down? Adaptive Rounding for Post-Training Quantization (Nagel et al., ICML 2020)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext


class AdaRound(zsqbench.ReconstructionQuantizer, zsqbench.GridQuantizer):
    """Learns layer by layer whether each weight is rounded up or down; the scales stay fixed.

    For each layer, in execution order, it minimizes || f(W x) - f(W~ x^) ||^2 + lambda sum(1 - |2 h(V) - 1|^beta). x is
    the layer's input in the float network. x^ is the input behind the layers that are already rounded. f is the
    activation function that follows. Activations stay float meanwhile, and their ranges are searched at the end.

    The default preset is `released`: the layer mode of DGH's port of BRECQ. The port's options call this mode similar
    to AdaRound. It makes 20,000 iterations, anneals beta linearly and goes through a permutation batch by batch.
    `paper` makes 10,000 iterations and anneals beta by a cosine, as AIMET does, the library of AdaRound's authors. The
    paper's text could not be looked up.

    Deviations:

    - A layer may end with a larger loss on the calibration images than rounding to nearest gives. It is then rounded to
      nearest, and a note says so.
    - The code behind AdaRound's rows in DGH's Table 3 is not released. DGH's layer mode learns step sizes afterwards;
      here ranges stay as they were searched.
    - BRECQ's code, of which DGH's is a port, initialises scales by the same search. DGH's code adds 1e-8 to the divisor
      of each rounding, not to the scale. Neither code widens a range to hold zero.
    - No layer is left out, whatever its width.
    - A layer that reads its own earlier output is learned at its first call. A layer that is called several times side
      by side, as a detector's head is for each level, is learned once on all calls, with equal weights.
    """

    name = "adaround"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"iterations": 10_000, "annealing": "cosine", "draws": "permutation"},
        "released": {"iterations": 20_000, "annealing": "linear", "draws": "epoch"},
    }

    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    iterations: Auto[int] = auto(ge=0, description="iterations for each layer")
    annealing: Auto[Literal["linear", "cosine"]] = auto(description="curve along which beta falls from 20 to 2")
    draws: Auto[Literal["permutation", "epoch", "replacement"]] = auto(
        description="order of images in batches: first of a new permutation, next of one permutation, or independent"
    )
    activation_range: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="method that chooses activation ranges"
    )
    search_images: int = Field(
        512, gt=0, description="images on which activation ranges are chosen; without effect with minmax"
    )

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Learn the rounding of each layer, then choose activation ranges. Raises ZSQBenchError without images."""
        from zsqbench.quant import (
            Reconstruction,
            Stage,
            calibrate_activations_by,
            calibrate_weights,
            memory_errors,
        )

        self, images = self.resolved(teacher, ctx.scheme), self.images_of(data)
        stage = Stage(
            self.iterations,
            self.batch_size,
            rounding=self.rounding(annealing=self.annealing),
            draws=self.draws,
        )
        memory = self.memory(ctx.device)
        engine = Reconstruction(student, images, ctx, {"weights": stage}, grain="layer", memory=memory)
        calibrate_weights(student, "mse")
        engine.run("weights")
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            ctx.images_read(calibrate_activations_by(self.activation_range, student, images, self.search_images))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `adaround`."""
    return [AdaRound]
