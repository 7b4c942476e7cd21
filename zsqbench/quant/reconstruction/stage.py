"""The settings of a stage of reconstruction: what is learned, from what, and how."""

from dataclasses import dataclass
from typing import Literal

from zsqbench.quant.reconstruction.losses import Fisher, UnitLoss
from zsqbench.quant.reconstruction.rounding import RoundingMethod

Draws = Literal["permutation", "epoch", "replacement"]
"""How images of a batch are drawn: the first of a new permutation, in turn through a permutation, or independently."""

InputSource = Literal["quantized", "float", "mixed"]
"""What a unit reads while it learns: outputs of the quantized units before it, of the float ones, or of both."""


@dataclass(frozen=True)
class StepSizes:
    """How activations learn their step sizes; rates are annealed by a cosine to zero."""

    lr: float = 4e-4
    lsq: bool = False
    """Multiply gradients by 1 / sqrt(elements * Q_P), as LSQ does: Q_P is 2^(b-1) - 1 on a signed symmetric grid."""


@dataclass(frozen=True)
class Stage:
    """What is learned in a stage of reconstruction, and how."""

    iterations: int
    batch_size: int = 32
    rounding: RoundingMethod | None = None
    """How the rounding of weights is learned, if it is: `Rounding` (AdaRound), or a parametrization of your own."""
    step_sizes: StepSizes | None = None
    quantize_activations: bool = False
    source: InputSource = "quantized"
    drop: float = 0.0
    """Probability of an element to stay float: behind each activation quantizer and, where `mixed`, of the input."""
    power: float = 2.0
    """p of the loss sum |y' - y|^p over channels, averaged over images and places."""
    fisher: Fisher | None = None
    loss: UnitLoss | None = None
    """A loss of your own in the place of that of `power` and `fisher`."""
    doubled: bool = False
    """Run a unit once on twice the batch, on what it learns from and on the quantized inputs that the prediction of its
    loss is for, as PD-Quant does; otherwise a mixed unit is run again for that."""
    keep_better: bool = True
    """Keep what a unit had before where learning made the loss worse on all calibration images."""
    draws: Draws = "permutation"
    layer_draws: Draws | None = None
    """The same for units of one layer, where that differs."""
