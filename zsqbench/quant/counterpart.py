"""Rescale the channels of the float network like those of a student (equalization), for comparisons."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.corrections.equalization import equalize, rescale
from zsqbench.quant.graph.pairs import BoundedReLU, Pair, layer_pairs
from zsqbench.quant.grids.fake_quant import QuantizedLayer

_HOMOGENEOUS = frozenset({"identity", "leakyrelu", "prelu", "relu", "relu6"})
"""Operators that may be between rescaled layers. A factor above zero passes through them, with the bound of ReLU6."""

FIRST, SECOND = 0.75, 0.9
"""Factors count if they leave at most these parts of the squared differences of the first and of the second weight.
On the embedded ResNet-20, factors of weights that dfq and hptq rescaled leave up to 0.46 and 0.79 at 4 bits, and up to
0.003 and 0.01 at 8 bits. The best factors of weights that rtn and squant rounded leave 0.95 and 0.99, or more."""
FIRST_ALONE = 0.25
"""The limit for the first weight if the second gives no information, because a depthwise layer has its own factors."""


@torch.no_grad()
def follow_rescaling(reference: nn.Module, student: nn.Module) -> list[str]:
    """Rescale the channels between layers of a float student like those of a quantized student. Returns the pairs.

    Equalization multiplies the channels between two layers by factors, so the float network has no tensor with these
    values. An artifact has neither the factors nor float weights, so a student without quantizers cannot be restored.
    But the rounded weights show the factors: a channel's factor brings the float weight nearest to the rounded weight.
    A factor counts if the next layer's weights were divided by it. `prepare` made the reference, and its quantizers are
    off. It is changed in place, and its outputs stay the same.
    """
    if not isinstance(reference, fx.GraphModule):
        return []
    pairs = [pair for pair in layer_pairs(reference) if pair.operator in _HOMOGENEOUS]
    return [f"{pair.first} to {pair.second}" for pair in pairs if _follow(reference, student, pair)]


def weight_of(layer: Any) -> Tensor:
    """The weight of a layer's computation, in floating point."""
    return cast("Tensor", layer.quantized_weight() if isinstance(layer, QuantizedLayer) else layer.weight)


def _follow(reference: fx.GraphModule, student: nn.Module, pair: Pair) -> bool:
    """Rescale a pair if the student's weights show factors. True: they do."""
    first, second = cast("tuple[Any, Any]", tuple(map(reference.get_submodule, (pair.first, pair.second))))
    bounded = pair.activation if pair.operator == "relu6" else None
    bound = None if bounded is None or bounded.op != "call_module" else reference.get_submodule(str(bounded.target))
    if bounded is not None and not isinstance(bound, BoundedReLU):
        return False  # a bound that cannot be moved
    found, next_found = (weight_of(student.get_submodule(path)) for path in (pair.first, pair.second))
    weight, next_weight = weight_of(first), weight_of(second)
    factors, groups = _factors(weight, found), getattr(second, "groups", 1)
    scaled = equalize(weight, None, next_weight, factors, next_groups=groups)
    says_nothing = next_weight.shape[1] == 1
    if _difference(scaled.weight, found) > (FIRST_ALONE if says_nothing else FIRST) * _difference(weight, found):
        return False
    # without the second layer's own factors, which the next pair will show
    left, before = (
        _difference(each * _shaped(_factors(each, next_found), each), next_found)
        for each in (scaled.next_weight, next_weight)
    )
    if not says_nothing and left > SECOND * before:
        return False
    rescale(reference, pair, factors)
    if isinstance(bound, BoundedReLU):
        bound.bound = bound.bound * factors.view(-1, *[1] * (weight.dim() - 2))
    return True


def _factors(weight: Tensor, found: Tensor) -> Tensor:
    """The factor of each output channel [C] with which a weight comes nearest to another weight. 1: there is none."""
    weight, found = weight.flatten(1).double(), found.flatten(1).double()
    factors = (weight * found).sum(1) / weight.square().sum(1)
    usable = factors.isfinite() & (factors > 0)
    return torch.where(usable, factors, torch.ones_like(factors)).to(torch.float32)


def _shaped(factors: Tensor, weight: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (weight.dim() - 1))


def _difference(weight: Tensor, found: Tensor) -> float:
    return (weight.double() - found.double()).square().sum().item()
