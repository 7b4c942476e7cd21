"""The interface of learned rounding of a weight: AdaRound's parametrization (`SoftRounding`), or your own.

A stage of reconstruction makes one object for each layer, in place of the layer's weight quantizer. It trains the
object's parameters with Adam, and keeps the final codes and scale.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from zsqbench.quant.grids.fake_quant import WeightQuantizer


class ParameterGroup(NamedTuple):
    """Tensors that learn with one rate."""

    tensors: Sequence[Tensor]
    lr: float
    is_annealed: bool = False
    """True if the rate falls to zero by a cosine; otherwise it stays."""


class LearnedRounding(WeightQuantizer, ABC):
    """A weight while its rounding is learned, on the grid that another quantizer found.

    Override two methods. `forward` returns the weight for the layer's computation during learning. It has the shape of
    the given float weight and is differentiable to the parameters. `codes` returns the final integers 0 .. 2^b - 1, of
    the same shape, on the grid of the final `scale` and `zero_point`. `scale` may learn; `zero_point` must not change.
    """

    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__(**quantizer.description())
        self.adopt(quantizer)

    @abstractmethod
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The parameters that learn, as tensors that require a gradient."""

    def regularize(self, iteration: int, iterations: int) -> None:
        """Add the gradient of a regulariser to those of the parameters, at an iteration counted from 1."""

    def constrain(self) -> None:
        """Move parameters back into their valid range, after each step of the optimiser; without gradients."""


RoundingMethod = Callable[[WeightQuantizer, Tensor], LearnedRounding]
"""Makes the learned rounding of a weight, from the weight's quantizer and the float weight."""
