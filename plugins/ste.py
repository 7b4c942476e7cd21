"""Uniform fake quantization with straight-through gradients, fine-tuned towards the float network: IntraQ's trainer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from zsqbench_plugins.shared.distillation import check_labels, label_gradients
from zsqbench_plugins.shared.generator_ranges import GeneratorRangesQuantizer
from zsqbench_plugins.shared.protocols import HAST_PROTOCOL, INTRAQ_PROTOCOL

import zsqbench

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, StepContext


class STE(GeneratorRangesQuantizer):
    """A student that learns from its float network and from labels; gradients ignore rounding.

    The loss is CE + alpha T^2 KL(float || student) (HAST, Eq. 1, 2 and 6). Weights are on the grid between the smallest
    and largest value of each channel, renewed in each update. Ranges of activations are learned before training and
    then fixed. All rows of HAST's tables except its own use this protocol. It comes from IntraQ (zysxmu/IntraQ), whose
    code this class follows: T = 20, which HAST's paper does not mention, and integer zero points and clamped codes,
    which its Eq. 1 does not have.

    The default preset is `paper`, the protocol of HAST's tables: learning rate 1e-5 (CIFAR) and 1e-6 (ImageNet). HAST's
    settings files decide where the paper is silent or differs; the paper cuts rates every 100 epochs. `released` is
    IntraQ's own protocol for CIFAR, with 1e-4. Epochs are counted from the first in which the student learns. The
    releases also count four warm-up epochs, so their 20, 40, 60 of 151 are 16, 36, 56 of 147 here.

    Deviations:

    - The last epoch is the result. The releases report the best epoch by test accuracy.
    - Ranges are averages without bias over 200 augmented batches of 16 of the calibration set. `range_source:
      generator` and `range_correction: compounding` work as released, with 800 batches.
    - A channel of one value keeps it. The releases divide by 1e-8.
    - Where the set has no labels, labels are the float network's predictions (`labels`).
    - Outputs of functions other than ReLU are rounded where the scheme says so.
    - Codes are round(x / s) + z. The releases have round(S x - Z) with S = 1 / s and an integer Z. Values halfway
      between two codes may be rounded the other way.
    - Images at the end of an order that fill no batch are left out. HAST's release puts them in a smaller batch.
    - The method is seeded.
    """

    name = "ste"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": HAST_PROTOCOL,
        "released": INTRAQ_PROTOCOL,
    }

    preset: Literal["paper", "released"] = Field("paper", description="values of the options that are not given")
    ce_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy towards labels")
    labels: Literal["set", "teacher"] | None = Field(
        None,
        description="source of labels: the set, or the float network; unset: the set where it has labels, "
        "else the float network",
    )

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set ranges, then train. Raises ZSQBenchError for a set without labels where it is to have them."""
        self = self.resolved(teacher, ctx.scheme)
        check_labels(self, data, ctx)
        self.train_on(student, teacher, data, ctx, lambda engine: label_gradients(self, engine, teacher, ctx))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `ste`."""
    return [STE]
