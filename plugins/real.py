"""Real images: the positive control, which is not data-free."""

from typing import TYPE_CHECKING

import zsqbench

if TYPE_CHECKING:
    from zsqbench import CalibrationSet, Pretrained, StepContext


class Real(zsqbench.Generator):
    """Images that the task hands out for calibration and does not evaluate, preprocessed for the network.

    Papers call this row "real data". It is a reference, not an upper bound: generated images sometimes calibrate
    better.
    """

    name = "real"
    control = "positive"
    uses_real_data = True
    gives_labels = True

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":  # noqa: ARG002
        """Return the task's images, or fewer than `images` where the task has no more."""
        if ctx.real_images is None:
            raise zsqbench.ZSQBenchError("generator 'real' needs a task that hands out calibration images")
        return ctx.real_images


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `real`."""
    return [Real]
