"""The settings of a stage of reconstruction."""

from dataclasses import dataclass
from typing import Literal

from zsqbench.quant.reconstruction.losses import Fisher, UnitLoss
from zsqbench.quant.reconstruction.rounding import RoundingMethod

Draws = Literal["permutation", "epoch", "replacement"]
"""Draw of a batch's images: the first of a new permutation, the next of one permutation, or independent."""

InputSource = Literal["quantized", "float", "mixed"]
"""Inputs of a unit while it learns: outputs of the earlier quantized units, of the float ones, or of both."""


@dataclass(frozen=True)
class StepSizes:
    """Settings of learned step sizes of activations. Rates are annealed by a cosine to zero."""

    lr: float = 4e-4
    lsq: bool = False
    """Multiply gradients by 1 / sqrt(elements * Q_P), as LSQ does: Q_P is 2^(b-1) - 1 on a signed symmetric grid."""


@dataclass(frozen=True)
class Stage:
    """Settings of a stage: its learned parameters, inputs and loss."""

    iterations: int
    batch_size: int = 32
    rounding: RoundingMethod | None = None
    """Learned rounding of weights, or None: `Rounding` (AdaRound), or your own parametrization."""
    step_sizes: StepSizes | None = None
    quantize_activations: bool = False
    source: InputSource = "quantized"
    drop: float = 0.0
    """Probability that an element stays float: behind each activation quantizer and, with `mixed`, in the input."""
    power: float = 2.0
    """p of the loss sum |y' - y|^p over channels, averaged over images and places."""
    fisher: Fisher | None = None
    loss: UnitLoss | None = None
    """Your own loss, in place of the loss of `power` and `fisher`."""
    doubled: bool = False
    """Run a unit once on twice the batch, as PD-Quant does: on its inputs for learning, and on the quantized inputs for
    the prediction in its loss. Otherwise a mixed unit is run again for the prediction."""
    keep_better: bool = True
    """Keep a unit's earlier values where learning increased the loss on all calibration images."""
    draws: Draws = "permutation"
    layer_draws: Draws | None = None
    """The draw for units of one layer, where it differs."""
