"""Uniform fake quantization with straight-through gradients, fine-tuned by teacher and student: IntraQ's trainer."""

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
    """A student that learns from its float network and from labels, through rounding that gradients do not see.

    CE + alpha T^2 KL(float || student) (HAST, Eq. 1, 2 and 6), weights on the grid between the smallest and largest
    value of each channel, renewed in each update; ranges of activations learned before, and fixed. This is the
    protocol of all rows of HAST's tables but its own, and comes from IntraQ (zysxmu/IntraQ), whose code it follows:
    T = 20, of which HAST's paper does not speak, integer zero points and clamped codes, which its Eq. 1 does not have.

    The default preset is `paper`, the protocol of HAST's tables: learning rate 1e-5 (CIFAR) and 1e-6 (ImageNet), and
    what HAST's files of settings say where the paper is silent or says otherwise (it cuts rates every 100 epochs).
    `released` is IntraQ's own for CIFAR, with 1e-4. Epochs are counted from the first in which the student learns: the
    releases count four of warming up, too, so that their 20, 40, 60 of 151 are 16, 36, 56 of 147 here.

    Deviations: the last epoch is the result, where the releases report the best by test accuracy; ranges are averages
    without bias over 200 augmented batches of 16 of the calibration set (`range_source: generator` and
    `range_correction: compounding` do as released, with 800); a channel of one value keeps it, where the releases
    divide by 1e-8; where the set has no labels, they are what the float network says (`labels`); outputs of other
    functions than ReLU are rounded where the scheme says so; seeded. Codes are round(x / s) + z, where the releases
    have round(S x - Z) with S = 1 / s and an integer Z: values halfway between two codes may be rounded the other way.
    Images at the end of an order that fill no batch are left out; HAST's release has a smaller batch of them.
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
