"""The network as it is: a control of the harness itself, which must reproduce the baseline exactly."""

import copy
from typing import TYPE_CHECKING

import zsqbench

if TYPE_CHECKING:
    from torch import nn

    from zsqbench import CalibrationSet, Pretrained, Scheme, StepContext


class FP32(zsqbench.Quantizer):
    """Quantizes nothing, at scheme `float` only."""

    name = "fp32"
    control = "float"
    seeded = False
    needs_images = False

    def rejects(self, scheme: "Scheme") -> str | None:
        """Every scheme but `float`."""
        return None if scheme.is_float else "it leaves the network in floating point, so it runs at scheme float only"

    def prepare(self, teacher: "Pretrained", scheme: "Scheme") -> "nn.Module":  # noqa: ARG002
        """Copy the network."""
        return copy.deepcopy(teacher.module)

    def quantize(
        self, student: "nn.Module", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Do nothing."""


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `fp32`."""
    return [FP32]
