"""A finalized student as integer hardware computes it: biases have 32 bits, on scales on which they fit."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from zsqbench.quant import ActivationQuantizer, QuantizedLayer, WeightQuantizer, quantized_layers
from zsqbench.quant.graph import is_layer, repeats_values

MOST_BIAS = 2**30
"""No bias has a larger code, so that 32 bits have room for the sums of a layer."""


@dataclass(frozen=True)
class Bias:
    """A bias as codes of 32 bits. The layer adds codes * scale, each [out channels]."""

    codes: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """The values of the codes, as a runtime computes them in float32."""
        return self.codes.float() * self.scale


@dataclass(frozen=True)
class IntegerStudent:
    """A copy of a student that computes with the numbers of a file of integers."""

    student: fx.GraphModule
    biases: Mapping[str, Bias]
    """Biases by the path of the layer. A layer whose input is not on one grid keeps a float bias."""
    widened: int
    """Number of channels with a coarser grid of weights. Otherwise the bias would not fit on the product of scales."""


@torch.no_grad()
def with_integer_biases(student: fx.GraphModule) -> IntegerStudent:
    """Copy a finalized student and round each bias to the scale of its layer's sums, s_x s_w, with 32 bits.

    If a bias needs more than 30 bits, the scale of its output channel is widened, and the weights are rounded again.
    Such channels are (almost) constant: a weight of 1e-9 beside a bias of 1 changes no output.
    """
    student = copy.deepcopy(student)
    biases: dict[str, Bias] = {}
    widened = 0
    inputs = layer_inputs(student)
    for path, layer in quantized_layers(student):
        quantizer, floats = inputs.get(path), cast("Tensor | None", layer.bias)
        if floats is None or quantizer is None:
            continue
        widened += _widen(layer, floats, quantizer.scale)
        scale = layer.weight_quantizer.scale.flatten() * quantizer.scale
        codes = (floats.double() / scale.double()).round()
        bias = Bias(codes.to(torch.int32), scale.expand_as(codes).clone())
        floats.copy_(bias.values())
        biases[path] = bias
    return IntegerStudent(student, biases, widened)


def layer_inputs(student: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """The quantizer that sets the grid of each layer's input, by the layer's path. None: no or several quantizers."""
    found: dict[str, set[ActivationQuantizer | None]] = {}
    for node in student.graph.nodes:
        if is_layer(node):
            found.setdefault(str(node.target), set()).add(_quantizer_before(student, node))
    return {path: quantizer for path, (quantizer, *others) in found.items() if quantizer is not None and not others}


def _quantizer_before(student: fx.GraphModule, layer: fx.Node) -> ActivationQuantizer | None:
    """The quantizer that made a layer's input. Operators that only move values are skipped."""
    node = layer.all_input_nodes[0]
    while True:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            return module
        if not repeats_values(node):
            return None
        node = node.all_input_nodes[0]


def _widen(layer: QuantizedLayer, bias: Tensor, input_scale: Tensor) -> int:
    """Widen the scales of the output channels whose bias does not fit, in place. Returns the number of channels."""
    quantizer = layer.weight_quantizer
    rows = (-1, *[1] * (layer.weight_codes.dim() - 1))
    scale = quantizer.scale.expand(len(bias), *[1] * (layer.weight_codes.dim() - 1)).flatten()
    # the product of scales must not vanish
    least = (bias.abs() / MOST_BIAS).clamp(min=torch.finfo(bias.dtype).tiny) / input_scale
    if quantizer.grid == "power_of_two":
        mantissa, exponent = torch.frexp(least)
        least = torch.ldexp(torch.ones_like(least), torch.where(mantissa == 0.5, exponent - 1, exponent))  # noqa: PLR2004
    too_fine = least > scale
    if too_fine.any():
        wide = torch.where(too_fine, least, scale).view(rows)
        weight = layer.quantized_weight()
        fresh = WeightQuantizer(**quantizer.description() | {"axis": 0, "shape": tuple(wide.shape)})
        zero_point = quantizer.zero_point.expand_as(wide)
        fresh.to(wide.device).set_parameters(wide, zero_point)
        codes = torch.where(too_fine.view(rows), fresh.codes(weight), layer.weight_codes.float())
        layer.weight_quantizer = fresh
        layer.weight_codes.copy_(codes.to(layer.weight_codes.dtype))
    return int(too_fine.sum())
