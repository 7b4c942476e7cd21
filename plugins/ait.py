"""AIT: It's All In the Teacher: Zero-Shot Quantization Brought Closer to the Teacher (Choi et al., CVPR 2022)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from zsqbench_plugins.shared.mixtures import MIXTURE_OPTIONS, MixtureQuantizer
from zsqbench_plugins.shared.protocols import GDFQ_PROTOCOL, QIMERA_MIXTURES

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from zsqbench import Pretrained, StepContext
    from zsqbench.quant import FineTuning
    from zsqbench.synthesis import BNLoss, ConditionalTraining

BISECTIONS = 5
TOLERANCE = 0.01
"""Allowed distance from the wanted share of changed integers, as a part of that share."""

LARGEST_FACTOR = 2.0**40
"""A step that is still too small with this factor is left as it is: the gradient is practically zero."""


class AIT(MixtureQuantizer):
    """GDFQ or Qimera, with a student that learns from the float network alone and whose steps change integers.

    The student has no cross-entropy. Gradient inundation enlarges the step of each weight tensor until the step changes
    a share of the tensor's integers (`threshold`, cut when the learning rate is). The step is doubled, then refined by
    at most five bisections. It is never smaller than the learning rate says. The class follows the released code
    (iamkanghyunchoi/ait): KL averaged over classes, alpha 1, T 20, no weight decay. The direction is Nesterov's, and
    ranges of weights are those after the step.

    HAST's tables show the best of three hosts. One of them, AutoReCon, is not available here (`host`), so no cell of
    this method equals one of those rows. The paper was not looked up, so there is no preset. Values of the hosts are
    those of `gdfq` and `qimera`.

    Deviations, besides those of `gdfq`:

    - Enlarging starts with the student's first step. The release caps the factor at 100 for one more epoch.
    - A tensor without a gradient is left alone. The release would not end on it.
    """

    name = "ait"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {
            name: {**GDFQ_PROTOCOL[name], **QIMERA_MIXTURES[name], "weight_decay": 0.0, **own}
            for name, own in {
                "cifar10": {"threshold": 1e-3},
                "cifar100": {"threshold": 1e-3},
                "imagenet": {"lr": 1e-4, "threshold": 1e-4},
            }.items()
        }
    }

    ce_weight: float = Field(0.0, ge=0, description="weight of the student's cross-entropy")
    host: Literal["gdfq", "qimera"] = Field("gdfq", description="method whose generator makes the images")
    threshold: Auto[float] = auto(ge=0, lt=1, description="share of a tensor's integers that a step changes")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The values for the data set, without those of Qimera's generator where GDFQ is the host."""
        found = super().automatic(network, scheme)
        if self.host == "qimera":
            return found
        return {name: value for name, value in found.items() if name not in MIXTURE_OPTIONS}

    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """The host's generator."""
        from zsqbench_plugins.shared.gdfq_generator import gdfq_training

        if self.host == "qimera":
            return self.qimera(teacher, ctx, bn_loss)
        return gdfq_training(bn_loss, teacher, self.batch_size, ctx.rng, self.generator_lr, method=self.name)

    def adjustment(self, engine: "FineTuning") -> Callable[[int], None] | None:
        """A function that adds the part of a step beyond the learning rate, or None where no step is enlarged."""
        import torch

        weights = [layer.weight for layer, _ in engine.weights]
        threshold, schedule = self.threshold, engine.schedule
        if not threshold or not weights:
            return None
        packed = _Packed(weights, [(quantizer.bits, quantizer.grid) for _, quantizer in engine.weights])

        @torch.no_grad()
        def enlarge(update: int) -> None:
            lr = schedule.lr_at(update)
            if not lr:
                return
            steps = [lr * _direction(weight, engine.optimizer, schedule.momentum) for weight in weights]
            factors = inundation(packed.take(weights, steps), threshold * schedule.factor ** schedule.passed(update))
            for weight, step, factor in zip(weights, steps, factors - 1, strict=True):
                weight.sub_(factor * step)

        return enlarge


def _direction(weight: "Tensor", optimizer: "Optimizer", momentum: float) -> "Tensor":
    """Nesterov's direction, before weight decay."""
    import torch

    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    velocity = optimizer.state[weight].get("momentum_buffer")
    return gradient + momentum * (gradient if velocity is None else momentum * velocity + gradient)


class _Packed:
    """Weights of several layers and a step for each, one row for each output channel, so that all are tried at once."""

    weights: "Tensor"
    steps: "Tensor"

    def __init__(self, weights: "Sequence[Tensor]", grids: Sequence[tuple[int, Grid]]) -> None:
        """Prepare the layout for these weights and their grids, given as bits and kinds. `take` fills it."""
        import torch

        self._longest = longest = max(weight[0].numel() for weight in weights)
        device = weights[0].device
        rows = torch.tensor([len(weight) for weight in weights], device=device)
        self.layer = torch.repeat_interleave(torch.arange(len(weights), device=device), rows)
        self.sizes = torch.tensor([weight.numel() for weight in weights], device=device)
        lengths = torch.tensor([weight[0].numel() for weight in weights], device=device)[self.layer]
        self._is_weight = torch.arange(longest, device=device) < lengths[:, None]
        self._rows = [
            (each, torch.tensor([grid == each for grid in grids], device=device)[self.layer]) for each in set(grids)
        ]

    def take(self, weights: "Sequence[Tensor]", steps: "Sequence[Tensor]") -> "_Packed":
        """Store the current weights and the steps that are to be made. Returns itself."""
        import torch

        self.weights, self.steps = (
            torch.cat([_padded(each.flatten(1), self._longest) for each in tensors]) for tensors in (weights, steps)
        )
        self._now = self._codes(self.weights)
        return self

    def changed(self, factors: "Tensor") -> "Tensor":
        """The share of each layer's integers that change with steps enlarged by these factors: [layers]."""
        moved = self._codes(self.weights - factors[self.layer, None] * self.steps)
        counts = ((moved != self._now) & self._is_weight).sum(1)
        return counts.new_zeros(len(self.sizes)).index_add_(0, self.layer, counts) / self.sizes

    def moves(self) -> "Tensor":
        """True for a layer in which any weight is to change: bool [layers]."""
        rows = self.steps.abs().sum(1)
        return rows.new_zeros(len(self.sizes)).index_add_(0, self.layer, rows) > 0

    def _codes(self, weights: "Tensor") -> "Tensor":
        import torch

        from zsqbench.quant import grid_parameters, quantize

        codes = torch.empty_like(weights)
        for (bits, grid), rows in self._rows:
            low, high = torch.aminmax(weights[rows], dim=1, keepdim=True)
            codes[rows] = quantize(weights[rows], *grid_parameters(low, high, bits, grid, signed=True), bits)
        return codes


def inundation(packed: _Packed, threshold: float) -> "Tensor":
    """The factor of each layer's step with which this share of its integers changes: [layers].

    A factor is at least 1. It is 1 where no factor suffices because there is no gradient.
    """
    import torch

    high = torch.ones(len(packed.sizes), device=packed.sizes.device)
    short = packed.moves() & (packed.changed(high) < threshold)
    enlarged = short.clone()
    while bool((short & (high < LARGEST_FACTOR)).any()):
        high = torch.where(short, 2 * high, high)
        short &= packed.changed(high) < threshold
    high, low = torch.where(short, 1.0, high), high / 2
    enlarged &= ~short
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        share = packed.changed(torch.where(enlarged, middle, high))
        near = (share - threshold).abs() <= TOLERANCE * threshold
        above = enlarged & ((share >= threshold) | near)
        high, low = torch.where(above, middle, high), torch.where(enlarged & ~above, middle, low)
        enlarged &= ~near
    return high


def _padded(rows: "Tensor", length: int) -> "Tensor":
    """Rows extended with their first value, which leaves their smallest and largest value unchanged."""
    import torch

    return torch.cat([rows, rows[:, :1].expand(-1, length - rows.shape[1])], 1)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `ait`."""
    return [AIT]
