"""DFQ: Data-Free Quantization Through Weight Equalization and Bias Correction (Nagel et al., ICCV 2019)."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import zsqbench
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Moments, Pair

    Norms = dict[str, tuple[Tensor, Tensor]]

HOMOGENEOUS = frozenset({"identity", "leakyrelu", "prelu", "relu", "relu6"})
"""Operators allowed between equalized layers: a positive factor passes through them (ReLU6: with its bound)."""
CONVERGED = 1e-3
"""Equalization ends when a sweep changes no range by more than this part of the range."""
TOLERATED_ABOVE = 1e-4
"""Share of values above 6 from which a table has a footnote that ReLU6 became ReLU.

EfficientNet-Lite0 has a share of 0.0012 and loses 16 points of 85. The embedded MobileNetV2 has 1e-7 and loses none.
"""
UNBOUNDED = "dfq_unbounded"
"""Key of a graph's `meta`: the paths of the layers whose ReLU6 became ReLU."""


class DFQ(zsqbench.GridQuantizer):
    """Equalizes weights, and takes ranges and bias corrections from batch normalisation: no data, no training.

    The method works on folded layers, in this order:

    - Cross-layer equalization. Consecutive layers (in chains of any length, depthwise layers included) get the same
      largest |weight| in each channel between them.
    - High-bias absorption, c = max(0, beta - 3 gamma).
    - Ranges. Weights are on one affine grid for each tensor, from end to end. Activations end at beta +- 6 gamma, cut
      off at the bounds of their function.
    - Analytic bias correction, b -= (Q(W) - W) E[x].

    Where no batch normalisation describes a tensor, `zsqbench.quant.corrections.bn_moments` carries mean and variance
    along the graph.

    The paper's other bias correction, empirical, needs images and is not implemented. AIMET's released defaults, which
    use it, are not implemented either.

    Deviations:

    - The output of a batch normalisation deviates by gamma sqrt(var / (var + eps)); the paper has gamma. The two differ
      in dead channels.
    - A channel whose weights are zero, or below a 2^24th of the layer's largest, is a constant. It is folded into the
      next bias before equalization, which would otherwise enlarge it without bound.
    - ReLU6 becomes ReLU only between equalized layers; in the paper everywhere. This changes the network: a MobileNetV1
      in which 1 % of the values exceed 6 falls from 57 to 9 % before quantization. `relu6: per_channel` changes
      nothing, but needs a bound for each channel, which not all hardware has.
    - Biases are also corrected behind sums and poolings and in the first layer. Pixels are assumed uniform, and tensors
      that are added are assumed independent.

    Absorption and bias correction are inexact along borders where a layer pads with zeros. There an absorbed c is added
    although it was not subtracted. This may cost more than absorption gains; `absorb_padded: false` leaves these layers
    out. Absorption is also inexact for values below c, 0.13 % of a normal distribution.

    The paper has no transposed convolutions. In those with a stride, each position of the output reads another part of
    the kernel. So nothing is absorbed into their bias, and the bias is corrected for the part that is read on average.
    """

    name = "dfq"
    seeded = False
    needs_images = False
    needs_bn = True

    equalization: bool = Field(True, description="rescale channels so that consecutive layers have equal ranges")
    sweeps: int = Field(
        40, gt=0, description="largest number of passes over all pairs of layers; fewer where equalization converges"
    )
    relu6: Literal["relu", "per_channel"] = Field(
        "relu", description="function that replaces ReLU6 between equalized layers: ReLU, or a bound for each channel"
    )
    absorption: bool = Field(
        True, description="move the part of values that almost always passes a ReLU into the next layer's bias"
    )
    absorb_padded: bool = Field(
        True, description="absorb also where the next layer pads with zeros, which is inexact at borders"
    )
    absorption_sigmas: float = Field(
        3.0, ge=0, description="standard deviations between the mean and the absorbed value below it"
    )
    bias_correction: bool = Field(True, description="correct biases by the expected error of the quantized weights")
    sigmas: float = Field(6.0, gt=0, description="standard deviations between mean and ends of an activation's range")
    per_channel: bool = Field(
        False, description="true: a grid for each output channel of a weight; false: one grid for the weight"
    )

    def rejects(self, scheme: Scheme) -> str | None:
        """Reject unfolded batch normalisation, and a grid that is not the demanded one."""
        if not scheme.is_float and not scheme.placement.fold_bn:
            return "it needs batch normalisation folded into the layers, and the scheme leaves it unfolded"
        return super().rejects(scheme)

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Insert quantizers, and the biases and movable bounds that the method needs."""
        from zsqbench.quant import add_biases, drop_bounds, free_bounds

        student = super().prepare(teacher, scheme)
        add_biases(student)
        if not scheme.quantizes_weights or not (self.equalization or self.absorption):
            return student
        if self.relu6 == "per_channel":
            free_bounds(student, per_channel=True)
        else:
            student.meta[UNBOUNDED] = drop_bounds(student)
        return student

    def quantize(
        self,
        student: "nn.Module",
        teacher: "Pretrained",
        data: "CalibrationSet | None",  # noqa: ARG002
        ctx: "StepContext",
    ) -> None:
        """Rescale and quantize. Raises ZSQBenchError for a network whose ranges do not follow from its norms."""
        import torch

        from zsqbench.quant import (
            Moments,
            activation_quantizers,
            calibrate_weights,
            include_zero,
            input_moments,
            unpaired_layers,
        )

        graph: Any = student
        pixels = [ends.to(ctx.device) for ends in teacher.valid_range()]
        with torch.no_grad():
            norms = _norms(graph)
            _note_unbounded(graph, norms, ctx)
            if (self.equalization or self.absorption) and (alone := unpaired_layers(graph)):
                ctx.note(f"left out of equalization and absorption: {', '.join(alone)}")
            if self.equalization:
                self._equalize(graph, norms, ctx)
            if self.absorption:
                self._absorb(graph, norms, ctx)
            moments = input_moments(graph, Moments.uniform(*pixels), norms, self.sigmas)
            for name, quantizer in activation_quantizers(graph):
                calls = moments[
                    quantizer
                ]  # several calls where levels of a pyramid share the layer that makes the tensor
                low, high = min(values.low.min() for values in calls), max(values.high.max() for values in calls)
                if not (low.isfinite() and high.isfinite()):
                    raise zsqbench.ZSQBenchError(
                        f"the range of tensor {name!r} that follows from batch normalisation is not finite: from "
                        f"{low.item():.3g} to {high.item():.3g}; take a quantizer that calibrates on images, such as "
                        "rtn or hptq"
                    )
                quantizer.set_range(*include_zero(low, high))
            calibrate_weights(graph, "minmax")
            if self.bias_correction:
                _correct_biases(graph, moments)

    def _equalize(self, student: Any, norms: "Norms", ctx: "StepContext") -> None:
        from zsqbench.quant import balancing_factors, rescale

        pairs = [pair for pair in _pairs(student) if pair.operator in HOMOGENEOUS]
        constants = sum(_fold_constants(student, pair, norms) for pair in pairs)
        if constants:
            ctx.note(f"equalization: {constants} channels without weights folded into the next bias")
        change, sweep = 0.0, 0
        while pairs and sweep < self.sweeps:
            change, sweep = 0.0, sweep + 1
            for pair in pairs:
                first, second = student.get_submodule(pair.first), student.get_submodule(pair.second)
                factors = balancing_factors(first.weight, second.weight, next_groups=getattr(second, "groups", 1))
                rescale(student, pair, factors)
                if pair.first in norms:
                    mean, deviation = norms[pair.first]
                    norms[pair.first] = mean * factors, deviation * factors
                bound = _bound(student, pair)
                if bound is not None:
                    bound.mul_(factors.view_as(bound))
                change = max(change, (factors - 1).abs().max().item())
            if change < CONVERGED:
                break
        ctx.note(f"equalization: {len(pairs)} pairs of layers; sweep {sweep} changed ranges by {100 * change:.1g} %")

    def _absorb(self, student: Any, norms: "Norms", ctx: "StepContext") -> None:
        import torch

        from zsqbench.quant import absorbed_biases

        pairs = [pair for pair in _pairs(student) if pair.operator in ("relu", "relu6") and pair.first in norms]
        pairs = [pair for pair in pairs if not pair.uneven and (self.absorb_padded or not pair.padded)]
        shares, channels = [], 0
        for pair in pairs:
            first, second = student.get_submodule(pair.first), student.get_submodule(pair.second)
            (mean, deviation), bound = norms[pair.first], _bound(student, pair)
            amounts = (mean.double() - self.absorption_sigmas * deviation.double()).clamp(min=0)
            if bound is not None:
                amounts = torch.minimum(amounts, bound.flatten().double())
                bound.sub_(amounts.view_as(bound))
            shares.append(_share_above(mean, deviation, amounts)[amounts > 0])
            channels += len(amounts)
            amounts, groups = amounts.to(mean), getattr(second, "groups", 1)
            biases = absorbed_biases(first.bias, second.weight, second.bias, amounts, next_groups=groups)
            first.bias, second.bias = (torch.nn.Parameter(bias, requires_grad=False) for bias in biases)
            norms[pair.first] = mean - amounts, deviation
        absorbed = torch.cat(shares) if shares else torch.empty(0)
        ctx.note(
            f"absorption: a part of {len(absorbed)} of {channels} channels before ReLU"
            + (f"; {100 * absorbed.mean().item():.4g} % of their values are expected above it" if len(absorbed) else "")
        )


def _note_unbounded(student: Any, norms: "Norms", ctx: "StepContext") -> None:
    import torch

    paths = student.meta.get(UNBOUNDED, [])
    shares = [_share_above(*norms[path], norms[path][0].new_tensor(6.0)) for path in paths if path in norms]
    if shares:
        share = torch.cat(shares).mean().item()
        tell = ctx.footnote if share > TOLERATED_ABOVE else ctx.note
        tell(
            f"ReLU6 became ReLU behind {len(paths)} layers, where {100 * share:.2g} % of values are expected above 6; "
            "relu6: per_channel would keep the network as it is"
        )


def _share_above(mean: "Tensor", deviation: "Tensor", amounts: "Tensor") -> "Tensor":
    """The expected share of a channel's normally distributed values that are at least this amount; 1 for 0 / 0."""
    import torch

    share: Tensor = torch.special.ndtr(((mean - amounts) / deviation).nan_to_num(nan=torch.inf, posinf=torch.inf))
    return share


def _pairs(student: Any) -> "list[Pair]":
    """Pairs of layers whose weights are both quantized."""
    from zsqbench.quant import layer_pairs, quantized_layers

    paths = {path for path, _ in quantized_layers(student)}
    return [pair for pair in layer_pairs(student) if {pair.first, pair.second} <= paths]


def _fold_constants(student: Any, pair: "Pair", norms: "Norms") -> int:
    """Move the channels for which a layer has no weights into the next bias. Returns their number.

    A constant that is not zero stays in two cases. A next layer that pads with zeros would see it in the padding too. A
    transposed convolution with a stride does not turn it into a constant.
    """
    import torch

    from zsqbench.quant import absorbed_biases, dead_channels, per_input

    if pair.operator not in ("identity", "relu", "relu6"):
        return 0
    first, second = student.get_submodule(pair.first), student.get_submodule(pair.second)
    values, bound = first.bias if pair.operator == "identity" else first.bias.relu(), _bound(student, pair)
    if bound is not None:
        values = torch.minimum(values, bound.flatten())
    dead = dead_channels(first.weight)
    if pair.padded or pair.uneven:
        dead = dead & (values == 0)
    kept, groups = (~dead).to(values), getattr(second, "groups", 1)
    _, next_bias = absorbed_biases(first.bias, second.weight, second.bias, values * dead, next_groups=groups)
    first.bias = torch.nn.Parameter(first.bias * kept, requires_grad=False)
    second.bias = torch.nn.Parameter(next_bias, requires_grad=False)
    second.weight = torch.nn.Parameter(second.weight * per_input(kept, second.weight, groups), requires_grad=False)
    if pair.first in norms:
        mean, deviation = norms[pair.first]
        norms[pair.first] = mean * kept, deviation * kept
    return int(dead.sum())


def _bound(student: Any, pair: "Pair") -> "Tensor | None":
    """The bounds of the activation function between two layers, or None where they cannot be moved."""
    from zsqbench.quant import BoundedReLU

    if pair.activation is None or pair.activation.op != "call_module":
        return None
    module = student.get_submodule(str(pair.activation.target))
    return module.bound if isinstance(module, BoundedReLU) else None


def _norms(student: Any) -> "Norms":
    """Beta and gamma of the norm folded into each layer. Raises ZSQBenchError if the network has no norms."""
    from zsqbench.quant import norm_moments
    from zsqbench.quant.graph import FOLDED, is_batch_norm

    folded = student.meta.get(FOLDED, {})
    if not folded and not any(is_batch_norm(node) for node in student.graph.nodes):
        raise zsqbench.ZSQBenchError(
            "quantizer 'dfq' reads ranges from batch normalisation, and the network has none; take rtn or hptq"
        )
    return {path: norm_moments(norm) for path, norm in folded.items()}


def _correct_biases(student: Any, moments: "dict[nn.Module, list[Moments]]") -> None:
    """Subtract from each bias the expected effect of the weight's rounding error."""
    import torch

    from zsqbench.quant import corrected_bias, kernel_share, quantized_layers

    for _, layer in quantized_layers(student):
        channels = -1 if layer.weight.dim() == 2 else 1  # noqa: PLR2004 - a linear layer
        means = [values.mean.movedim(channels, 0).flatten(1).mean(1) for values in moments[layer]]
        mean, groups = torch.stack(means).mean(0), getattr(layer, "groups", 1)
        weights = layer.weight, layer.quantized_weight()
        share = kernel_share(layer)
        bias = corrected_bias(layer.get_parameter("bias"), *weights, mean, groups=groups, kernel_share=share)
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `dfq`."""
    return [DFQ]
