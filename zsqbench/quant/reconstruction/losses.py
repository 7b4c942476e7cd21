"""Losses of reconstruction: the distance between the outputs of a quantized unit and of the float one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional

from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.affine import inner_product

Fisher = Literal["diag", "full"]
"""Weighting of squared errors with the gradients of the network's loss: element by element, or image by image."""

_SQUARE = 2.0


def reconstruction_loss(
    output: Tensor, target: Tensor, power: float = 2.0, fisher: Fisher | None = None, weights: Tensor | None = None
) -> Tensor:
    """The sum over channels (dimension 1) of |output - target|^power, averaged over the other dimensions, as in BRECQ.

    With `fisher`, squared errors are weighted by `weights` of the output's shape. diag: (e g)^2, reduced in the same
    way. full: mean(sum(|e| |g|) |e| |g|) / 100, where the inner sum is over an image. One value for each image, [N],
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
    """A unit that returns the loss without weights, for the targets of these outputs and then its inputs.

    Each unit has its own graph. torch counts compilations by function, and stops at a limit.
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
    """A batch of images for a loss: the unit's outputs for them, and the network's predictions with these outputs.

    Predictions are a classifier's, in float32, and computed on request. Raises ZSQBenchError where the network is not a
    classifier.
    """

    outputs: Mapping[str, Tensor]
    """Outputs of the quantized unit, by name of the tensor; differentiable while the unit learns."""
    targets: Mapping[str, Tensor]
    """Outputs of the unit of the float network, by the same names."""
    prediction: Callable[[], Tensor]
    """The logits [N, classes] of the network that is quantized up to and including this unit and float behind it.

    They are differentiable. A unit that learns from mixed inputs is run on the quantized ones for this.
    """
    float_prediction: Callable[[], Tensor]
    """The logits [N, classes] of the float network."""

    def distance(self, power: float = _SQUARE) -> Tensor:
        """The `reconstruction_loss` summed over all outputs: the loss of BRECQ and QDrop."""
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
