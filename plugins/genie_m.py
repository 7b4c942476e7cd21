"""GENIE-M, the quantizer of GENIE: Show Me the Data for Quantization (Jeon et al., CVPR 2023)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import zsqbench
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import ActivationQuantizer, Unit


class GENIEM(zsqbench.ReconstructionQuantizer):
    """QDrop with learned scales of weights: floor(W / s) keeps its initial value while s is trained.

    W~ = s (clip(floor(W / s0) + h(V) + z, 0, 2^b - 1) - z). s and V are learned together with the step sizes of
    symmetric activations. Weights start with the best of 100 shrunk ranges. Activations of a unit start when the unit's
    turn comes, with the best range on the first batch behind the earlier quantized units. Batch normalisation is not
    folded, as in the released code. `fold` folds it; this gives other results, because Adam's steps on s are absolute.
    Paper and released code do not differ as far as could be looked up, so there is no preset.

    Deviations:

    - Batches have `batch_size` images. In the code an epoch has `batch_size` batches, which is the same for its 1024
      images.
    - When activations are initialised, earlier activations of the unit are rounded, not mixed at random.
    - The scheme decides the bits of each tensor. The code has 8 bits for first and last weights, the classifier's input
      and the second layer's input. It quantizes no logits, and it quantizes tensors where layers read them, not where
      they are made.
    - A unit that learning made worse on the calibration images keeps its earlier values.
    - Scales stay above a thousandth of their initial values.
    """

    name = "genie_m"
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")
    activation_grids: ClassVar[tuple[Grid, ...]] = ("symmetric",)

    iterations: int = Field(20_000, ge=0, description="iterations for each unit")
    rounding_weight: float = Field(1.0, ge=0, description="weight of the regulariser (lambda)")
    weight_scale_lr: float = Field(1e-4, gt=0, description="learning rate of weight scales (Adam, cosine to zero)")
    activation_scale_lr: float = Field(4e-5, gt=0, description="learning rate of step sizes (Adam, cosine to zero)")
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an element stays float")
    fold: bool = Field(False, description="fold batch normalisation, if the scheme folds it")

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Insert quantizers of symmetric activations and of layers that are not folded."""
        from zsqbench.quant import activation_quantizers

        if not self.fold:
            placement = scheme.placement.model_copy(update={"fold_bn": False})
            scheme = scheme.model_copy(update={"placement": placement})
        student = super().prepare(teacher, scheme)
        for _, quantizer in activation_quantizers(student):
            quantizer.clips_first = True
        return student

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",  # noqa: ARG002
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Learn unit by unit. Raises ZSQBenchError without calibration images."""
        from zsqbench.quant import (
            Reconstruction,
            Stage,
            StepSizes,
            search_weights,
            shrink_search,
        )

        images = self.images_of(data)
        search_weights(student, shrink_search)
        stage = Stage(
            self.iterations,
            self.batch_size,
            rounding=self.rounding(scale_lr=self.weight_scale_lr),
            step_sizes=StepSizes(self.activation_scale_lr),
            quantize_activations=True,
            source="mixed",
            drop=self.drop,
            draws="epoch",
        )
        memory = self.memory(ctx.device)
        engine = Reconstruction(
            student, images, ctx, {"joint": stage}, memory=memory, before_unit=_initialize_activations
        )
        engine.run("joint")


def _initialize_activations(unit: "Unit", inputs: "Sequence[Tensor]") -> None:
    from zsqbench.quant import calibrate_unit

    calibrate_unit(unit, inputs, _grid)


def _grid(quantizer: "ActivationQuantizer", values: "Tensor") -> "tuple[Tensor, Tensor]":
    from zsqbench.quant import shrink_search

    signed = quantizer.is_signed(values.min())
    scale, _ = shrink_search(values, quantizer.bits, symmetric=True, signed=signed)
    # the search's zero point is a rounded tie; the released code then uses the exact one instead
    return scale, scale.new_tensor(2.0 ** (quantizer.bits - 1) if signed else 0.0)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `genie_m`."""
    return [GENIEM]
