"""The unchanged network: a control of the harness itself, which must reproduce the baseline exactly."""

from typing import TYPE_CHECKING

import zsqbench

if TYPE_CHECKING:
    from torch import fx

    from zsqbench import CalibrationSet, Pretrained, Scheme, StepContext


class FP32(zsqbench.Quantizer):
    """Quantizes nothing, at scheme `float` only."""

    name = "fp32"
    control = "float"
    seeded = False
    needs_images = False

    def rejects(self, scheme: "Scheme") -> str | None:
        """Reject every scheme except `float`."""
        return None if scheme.is_float else "it leaves the network in floating point, so it runs at scheme float only"

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Do nothing."""


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `fp32`."""
    return [FP32]
