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
    """QDrop with the scales of weights learned, too: floor(W / s) stays what it was at first, while s is trained.

    W~ = s (clip(floor(W / s0) + h(V) + z, 0, 2^b - 1) - z), with s and V learned together, and the step sizes of
    symmetric activations with them. Weights start with the best of 100 shrunk ranges, activations of a unit with that
    on the first batch behind the quantized units before it, when its turn comes. Batch normalisation is not folded, as
    in the released code (`fold` folds it: Adam's steps on s are absolute, so this gives other results). Paper and
    released code do not differ as far as could be looked up, so there is no preset.

    Deviations: batches are of `batch_size`; the code has `batch_size` batches in an epoch, which is the same for its
    1024 images. When activations are initialised, those before them in the unit are rounded, not mixed at random. Which
    tensors have which bits is the scheme's matter (the code has 8 bits for first and last weights, the classifier's and
    the second layer's input; it quantizes no logits, and tensors where layers read them rather than where they are
    made). A unit that learning made worse on the calibration images keeps what it had before, and scales stay above a
    thousandth of what they were.
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
        """Put quantizers in place, of symmetric activations and of layers that are not folded."""
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
    # the search's own zero point is a rounded tie, for which the released code takes the exact one afterwards
    return scale, scale.new_tensor(2.0 ** (quantizer.bits - 1) if signed else 0.0)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `genie_m`."""
    return [GENIEM]
