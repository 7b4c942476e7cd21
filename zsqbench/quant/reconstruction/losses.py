"""What reconstruction minimizes: the distance between the output of a quantized unit and of the float one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional

from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.affine import inner_product

Fisher = Literal["diag", "full"]
"""How squared errors are weighted with the gradients of the network's loss: element by element, or image by image."""

_SQUARE = 2.0


def reconstruction_loss(
    output: Tensor, target: Tensor, power: float = 2.0, fisher: Fisher | None = None, weights: Tensor | None = None
) -> Tensor:
    """The sum over channels (dimension 1) of |output - target|^power, averaged over the others, as in BRECQ.

    With `fisher`, squared errors weighted by `weights`, of the output's shape: (e g)^2, reduced in the same way
    (diag), or mean(sum(|e| |g|) |e| |g|) / 100, the inner sum over an image (full). One value for each image, [N],
    counts as one channel.
    """
    if output.dim() == 1:
        output, target, weights = output[:, None], target[:, None], None if weights is None else weights[:, None]
    output, target = output.float(), target.float()
    places = output.numel() // output.shape[1]
    if fisher is None:
        if power == _SQUARE:
            return functional.mse_loss(output, target, reduction="sum") / places
        total: Tensor = _PowerSum.apply(output, target, power)
        return total / places
    if weights is None:
        raise ValueError("the loss fisher needs weights")
    weighted = (output - target).abs() * weights
    if fisher == "diag":
        return weighted.square().sum() / places
    whole = weighted.flatten(1).sum(1).view(-1, *[1] * (weighted.dim() - 1))
    return (whole * weighted).mean() / 100


def total(losses: Sequence[Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(list(losses)).sum()


def with_loss(unit: Unit, targets: Sequence[str], power: float) -> fx.GraphModule:
    """A unit that returns the loss without weights, for what these outputs are to be, and then its inputs.

    A graph of its own for each unit: torch counts by functions how often it compiles, and stops at some number.
    """
    graph = fx.Graph()
    wanted = [graph.placeholder(f"wanted_{place}") for place in range(len(targets))]
    given: Any = graph.graph_copy(unit.module.graph, {})
    losses = [
        graph.call_function(reconstruction_loss, (given[unit.outputs.index(name)], target, power))
        for name, target in zip(targets, wanted, strict=True)
    ]
    graph.output(graph.call_function(total, (losses,)))
    return fx.GraphModule(unit.module, graph)


@dataclass(frozen=True)
class UnitBatch:
    """A batch of images as a loss sees it: what a unit gives for them, and what the network predicts with that.

    Predictions are those of a classifier, in float32, and computed when they are asked for; ZSQBenchError is raised
    where the network is none.
    """

    outputs: Mapping[str, Tensor]
    """Outputs of the quantized unit, by name of the tensor; differentiable while the unit learns."""
    targets: Mapping[str, Tensor]
    """Outputs of the unit of the float network, by the same names."""
    prediction: Callable[[], Tensor]
    """The logits [N, classes] of the network that is quantized up to and including this unit and float behind it.

    They are differentiable, too. Where the unit learns from mixed inputs, it is run on the quantized ones for this.
    """
    float_prediction: Callable[[], Tensor]
    """The logits [N, classes] of the float network."""

    def distance(self, power: float = _SQUARE) -> Tensor:
        """The `reconstruction_loss` of outputs and targets, summed over them: BRECQ's and QDrop's."""
        losses = [reconstruction_loss(self.outputs[name], target, power) for name, target in self.targets.items()]
        return torch.stack(losses).sum()


UnitLoss = Callable[[UnitBatch], Tensor]
"""The loss of a unit: a scalar, a mean over images, differentiable to the batch's outputs or prediction."""


class _PowerSum(torch.autograd.Function):
    """The sum of |x - y|^p and its gradient to x, with one logarithm and one power for both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, power: float) -> Tensor:
        error = x - y
        size = error.abs()
        slope = size.log2().mul_(power - 1).exp2_()  # |e|^(p-1); pow takes three times as long
        total = (size * slope).sum() if torch.compiler.is_compiling() else inner_product(size, slope)
        ctx.save_for_backward(slope.copysign_(error))
        ctx.power = power
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * (gradients[0] * ctx.power), None, None
