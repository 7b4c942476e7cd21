"""BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction (Li et al., ICLR 2021)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, auto
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Unit

FISHER: dict[str, Literal["diag", "full"] | None] = {"mse": None, "fisher_diag": "diag", "fisher_full": "full"}
"""The part of the Fisher information that weighs errors, by the option `loss`."""


class BRECQ(zsqbench.ReconstructionQuantizer):
    """Block reconstruction in two stages: the rounding of weights, then the step sizes of activations.

    Units are residual blocks (in other networks, the parts that correspond to them) and the layers outside of them.
    Stage 1 learns the rounding of all weights of a unit together, as AdaRound does. Its inputs come from layers whose
    weights are already rounded, and activations stay float. Then one forward pass searches all activation ranges. Stage
    2 learns the step sizes unit by unit, from inputs of the float network, with the loss |y' - y|^2.4.

    The default preset is `released`: DGH's port of BRECQ, which produced DGH's Tables 1, 4 and 5. Its loss is the plain
    squared error, step sizes learn at 4e-4, and ranges are searched on 512 images. `paper` weights squared errors with
    the diagonal of the Fisher information (in the code's form, |dKL/dy| + 1), with 4e-5 and 64 images. The paper's text
    could not be looked up. The placement may have its own number of bits for the first layer (`academic`). Both stages
    then leave this layer out, as BRECQ's code does, but not the last layer. A first layer whose bits come from a
    pattern of tensor names is learned like any other. MobileNetV2 was run with `rounding_weight: 0.1`.

    Deviations:

    - A unit that learning made worse, on the calibration images and by its stage's loss, keeps its earlier values. A
      note says so.
    - Calibration images beyond a multiple of the batch are not dropped.
    - DGH's code adds 1e-8 to the divisor of each rounding, and leaves scales as they are. Here this is left out.
    - Neither code widens ranges to hold zero.
    - Step sizes stay above a thousandth of their initial values.
    - Blocks are found from the graph, so networks outside the released code also have units. A head that the levels of
      a pyramid share is in one unit with all of them, and all levels have equal weights.
    """

    name = "brecq"
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"loss": "fisher_diag", "activation_lr": 4e-5, "search_images": 64, "layer_draws": "permutation"},
        "released": {"loss": "mse", "activation_lr": 4e-4, "search_images": 512, "layer_draws": "epoch"},
    }

    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    loss: Auto[Literal["mse", "fisher_diag", "fisher_full"]] = auto(description="loss that stage 1 minimizes")
    units: Literal["block", "layer"] = Field(
        "block", description="parts of the network that are reconstructed one at a time"
    )
    weight_iterations: int = Field(20_000, ge=0, description="iterations of stage 1 for each unit")
    activation_iterations: int = Field(5000, ge=0, description="iterations of stage 2 for each unit")
    activation_lr: Auto[float] = auto(gt=0, description="learning rate of step sizes (Adam, cosine to zero)")
    search_images: Auto[int] = auto(gt=0, description="images on which activation ranges are chosen")
    layer_draws: Auto[Literal["permutation", "epoch", "replacement"]] = auto(
        description="images of an iteration on a single layer: the first of a new permutation, as on blocks, the next "
        "of one, or any, independently"
    )

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Learn rounding, then step sizes. Raises ZSQBenchError without calibration images."""
        from zsqbench.quant import (
            Reconstruction,
            Stage,
            StepSizes,
            calibrate_activations_by,
            calibrate_weights,
            memory_errors,
        )

        self, images, scheme = self.resolved(teacher, ctx.scheme), self.images_of(data), self.scheme_of(ctx)
        weights = Stage(
            self.weight_iterations,
            self.batch_size,
            rounding=self.rounding(),
            fisher=FISHER[self.loss],
            layer_draws=self.layer_draws,
        )
        activations = Stage(
            self.activation_iterations,
            self.batch_size,
            step_sizes=StepSizes(self.activation_lr),
            quantize_activations=True,
            source="float",
            power=2.4,
            layer_draws=self.layer_draws,
        )
        stem = _stem_of_its_own(student, scheme)

        def is_kept(unit: "Unit") -> bool:
            return [path for path, _ in unit.layers] == [stem]

        stages = {"weights": weights, "activations": activations}
        memory = self.memory(ctx.device)
        engine = Reconstruction(student, images, ctx, stages, grain=self.units, skip=is_kept, memory=memory)
        calibrate_weights(student, "mse")
        engine.run("weights")
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            ctx.images_read(calibrate_activations_by("mse", student, images, self.search_images))
        engine.run("activations")


def _stem_of_its_own(student: "fx.GraphModule", scheme: Scheme) -> str | None:
    """The first layer, where the placement has bits for it and no pattern of tensor names sets others; or None."""
    from zsqbench.quant import weight_quantizers

    stem = next((name for name, quantizer in weight_quantizers(student) if quantizer.role == "first_weight"), "")
    fixed = isinstance(scheme.placement.first_weight, int) and scheme.placement.pattern_of("weight", stem) is None
    return stem if fixed else None


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `brecq`."""
    return [BRECQ]
