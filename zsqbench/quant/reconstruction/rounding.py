"""The contract of what learns how a weight is rounded: AdaRound's parametrization (`SoftRounding`), or one of your own.

A stage of reconstruction makes one for each layer, puts it in the place of the layer's weight quantizer, trains its
parameters with Adam, and keeps the codes and the scale that it ends with.
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

    Override `forward`, the weight that the layer computes with meanwhile, of the shape of the float weight that it is
    given and differentiable to the parameters; and `codes`, the integers 0 .. 2^b - 1 at the end, of the same shape, on
    the grid of `scale` and `zero_point` as they are then. `scale` may learn; `zero_point` must stay as it is.
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
        """Bring parameters back to where they may be, after each step of the optimiser; without gradients."""


RoundingMethod = Callable[[WeightQuantizer, Tensor], LearnedRounding]
"""Makes what learns the rounding of a weight, from the quantizer that the weight has and the float weight."""
