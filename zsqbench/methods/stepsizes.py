"""The base of quantizers that train the step sizes of their grids beside the weights."""

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zsqbench.methods import Network
from zsqbench.methods.training import SetTrainingQuantizer
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench.quant import Grids, Schedule


class StepSizeQuantizer(SetTrainingQuantizer, ABC):
    """A quantizer that trains a student on a set together with the step sizes of its symmetric grids, as LSQ does.

    Gradients are those of LSQ (Esser et al., ICLR 2020). They are zero where a value is clamped. The gradient of a step
    size is divided by sqrt(n Q_P). n is the number of values of a weight, or of an activation in one image. Q_P is
    2^(b-1) - 1 on a signed grid and 2^b - 1 on an unsigned one. Step sizes begin at 2 <|x|> / sqrt(Q_P). They do not
    decay, and stay above a thousandth of their initial values. A network need not be a classifier.

    With `start`, grids of any kind are taken from another quantizer, and learning continues from them.
    """

    needs_classes: ClassVar[bool] = False
    weight_grids: ClassVar[tuple[Grid, ...]] = ("symmetric",)
    activation_grids: ClassVar[tuple[Grid, ...]] = ("symmetric",)

    per_channel: bool = Field(
        False, description="true: a step size for each output channel of a weight; false: one for the weight"
    )
    initial_steps: Literal["lsq", "ranges"] = Field(
        "lsq", description="values at which step sizes begin: LSQ's rule, or averages of smallest and largest values"
    )
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="SGD with Nesterov's momentum, or Adam without")
    annealing: Literal["steps", "cosine"] = Field(
        "cosine", description="learning rate: cut at milestones, or lowered from epoch to epoch along a cosine"
    )

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values. LSQ's rule reads one batch."""
        batches = {"range_updates": 1} if self.initial_steps == "lsq" else {}
        return {"milestones": [], **super().automatic(network, scheme), **batches}

    def grids_at(self, scheme: Scheme) -> "Grids":
        """Symmetric grids, one for each weight unless `per_channel` says otherwise."""
        return replace(super().grids_at(scheme), per_channel=self.per_channel)

    @property
    def learns_steps(self) -> bool:
        """It does."""
        return True

    def set_grids(self, student: "fx.GraphModule", batches: "Iterator[Tensor]") -> None:
        """Set all step sizes to their initial values."""
        from zsqbench.quant import begin_steps

        if self.initial_steps == "ranges":
            super().set_grids(student, batches)
        else:
            begin_steps(student, batches)

    def schedule(self) -> "Schedule":
        """The schedule of the options, with optimiser and annealing."""
        return replace(super().schedule(), optimizer=self.optimizer, annealing=self.annealing)
