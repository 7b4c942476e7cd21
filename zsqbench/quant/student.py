"""Prepare a student from a network and a scheme: a copy with a quantizer at each tensor that the scheme quantizes."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.graph.bn_folding import fold_bn
from zsqbench.quant.graph.gradients import keep_gradients_finite
from zsqbench.quant.graph.layer_norms import fold_layer_norms
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.tensor_roles import (
    activation_roles,
    check_supported,
    first_calls,
    read_part,
    reads_by_matrix,
    weight_roles,
)
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.grids.affine import pixel_parameters
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, QuantizedLayer, WeightQuantizer, quantized_layer
from zsqbench.quant.grids.logarithmic import LogQuantizer
from zsqbench.scheme import FLOAT_BITS, Grid, Placement, Scheme, Side

QUANTIZERS = "activation_quantizers"
"""Name of the submodule with a student's activation quantizers, each under the name of its tensor."""

IMAGE = "input"
"""The role of the image."""

_ROLES = "roles"
T = TypeVar("T")

Roles = dict[tuple[str, str], str]
"""The role of each tensor, by its kind (`weight` or `activation`) and name."""


@dataclass(frozen=True)
class Grids:
    """The kinds of grid that a quantizer rounds to."""

    weights: Grid = "affine"
    activations: Grid = "affine"
    per_channel: bool = True
    """True if each output channel of a weight has its own grid. Activations have one grid per tensor."""


def prepare(
    module: nn.Module, scheme: Scheme, input_size: tuple[int, int, int], grids: Grids | None = None
) -> fx.GraphModule:
    """Copy a network and put a quantizer at each tensor that the scheme quantizes. The original does not change.

    Until its quantizers are calibrated, the student computes the same as the network (up to the rounding of BN
    folding). Its structure only depends on network, scheme and grids. Raises ZSQBenchError for a network that cannot be
    traced, unless the scheme is float (the student is then a graph of one node that calls the whole network). Also
    raises it if a pattern of the scheme matches no tensor.
    """
    if scheme.is_float:
        return _untraced(copy.deepcopy(module))
    student = capture(module, input_size)
    if scheme.placement.fold_bn:
        fold_bn(student)
    if scheme.placement.fold_layer_norm:
        fold_layer_norms(student)
    if scheme.quantizes_weights:
        check_supported(student)
    grids = grids or Grids()
    activations = activation_roles(student, scheme.placement)
    student.meta[_ROLES] = _insert_weight_quantizers(student, scheme, grids)
    student.meta[_ROLES] |= _insert_activation_quantizers(student, activations, scheme, grids.activations)
    scheme.check_patterns(student.meta[_ROLES])
    keep_gradients_finite(student)
    return student


def hold_image(student: nn.Module, low: Tensor, high: Tensor) -> None:
    """Fix the range of the image's quantizer to valid pixels. low and high may be given for each channel.

    A method may still set its range or learn step sizes, but this does not change the range. See `pixel_parameters`.
    """
    for _, quantizer in activation_quantizers(student):
        if quantizer.role == IMAGE:
            grid = pixel_parameters(low.min(), high.max(), quantizer.bits, quantizer.grid)
            quantizer.hold(*(value.to(quantizer.scale) for value in grid))


def add_biases(student: nn.Module) -> None:
    """Give each layer with a quantized weight but without a bias a bias of zeros, for methods that correct biases."""
    for _, layer in quantized_layers(student):
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight.flatten(1)[:, 0]), requires_grad=False)


def quantized_layers(student: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    """Path and module of each layer with a quantized weight, in execution order."""
    layers = [(name, module) for name, module in student.named_modules() if isinstance(module, QuantizedLayer)]
    return _in_execution_order(student, "weight", layers)


def weight_quantizers(student: nn.Module) -> list[tuple[str, WeightQuantizer]]:
    """Name (the path of the layer) and quantizer of each quantized weight, in execution order."""
    return [(name, layer.weight_quantizer) for name, layer in quantized_layers(student)]


def activation_quantizers(student: nn.Module) -> list[tuple[str, ActivationQuantizer]]:
    """Name of the tensor and quantizer of each quantized activation, in execution order."""
    quantizers = [(module.name, module) for module in student.modules() if isinstance(module, ActivationQuantizer)]
    return _in_execution_order(student, "activation", quantizers)


def tensor_roles(student: nn.Module) -> Roles:
    """The role of each tensor that a scheme can quantize, in execution order. Empty: nothing was prepared."""
    # `meta` of a GraphModule survives copies, and other modules have none
    return cast("Roles", getattr(student, "meta", {}).get(_ROLES, {}))


def _untraced(network: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module("network", (graph.placeholder("images"),)))
    student = fx.GraphModule({"network": network}, graph, type(network).__name__)
    student.training = network.training
    return student


def _in_execution_order(student: nn.Module, kind: str, named: list[tuple[str, T]]) -> list[tuple[str, T]]:
    order = {place: position for position, place in enumerate(tensor_roles(student))}
    return sorted(named, key=lambda item: order.get((kind, item[0]), len(order)))


def _insert_weight_quantizers(student: fx.GraphModule, scheme: Scheme, grids: Grids) -> Roles:
    roles: Roles = {}
    for path, role in weight_roles(student).items():
        bits = scheme.bits_of("weight", path, role)
        roles["weight", path] = role
        if bits != FLOAT_BITS:
            layer = student.get_submodule(path)
            quantized = quantized_layer(layer, path, role, bits, grid=grids.weights, per_channel=grids.per_channel)
            student.set_submodule(path, quantized)
    return roles


def _insert_activation_quantizers(
    student: fx.GraphModule, activations: Mapping[fx.Node, str], scheme: Scheme, grid: Grid
) -> Roles:
    device = next(student.parameters(), torch.empty(0)).device
    roles: Roles = {}
    repeated = first_calls(student, activations)
    for node, role in activations.items():
        name = tensor_name(repeated.get(node, node))
        bits = scheme.bits_of("activation", name, role)
        if node not in repeated:
            roles["activation", name] = role
        if bits != FLOAT_BITS:
            if node not in repeated:
                quantizer = _activation_quantizer(name, role, bits, scheme.placement, grid).to(device)
                student.add_submodule(f"{QUANTIZERS}.{name}", quantizer)
            _quantize_reads(student, node, f"{QUANTIZERS}.{name}", scheme.placement.side)
    return roles


def _activation_quantizer(name: str, role: str, bits: int, placement: Placement, grid: Grid) -> ActivationQuantizer:
    if role == "softmax" and placement.softmax_grid is not None:
        return LogQuantizer(name, role, bits, axis=None, shape=())
    kind = placement.image_grid or grid if role == IMAGE else grid
    return ActivationQuantizer(name, role, bits, grid=kind, axis=None, shape=())


def _quantize_reads(student: fx.GraphModule, node: fx.Node, path: str, side: Side) -> None:
    """Let the readers of a tensor read it from the quantizer of this path. With `inputs`, only layers and products."""
    source = read_part(node) if side == "outputs" else node
    with student.graph.inserting_after(source):
        quantized = student.graph.call_module(path, (source,))
    is_constant = source.op == "get_attr"
    meta = {"operator": "identity", **({"carries_values": False} if is_constant else {})}
    quantized.meta |= source.meta | meta  # its output is the same tensor, on a grid
    for user in list(source.users):
        if user is not quantized and (side == "outputs" or reads_by_matrix(user)):
            user.replace_input_with(source, quantized)
