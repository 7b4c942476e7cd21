"""From a calibrated student to its artifact, whose weights are integers, and back; and what a student quantizes."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from zsqbench.quant.grids.fake_quant import ActivationQuantizer, WeightQuantizer, plain
from zsqbench.quant.student import activation_quantizers, quantized_layers, recorded_map, weight_quantizers
from zsqbench.scheme import FLOAT_BITS


@torch.no_grad()
def finalize(student: nn.Module) -> None:
    """Turn weights into integers and drop all that only training needed, in place; its state dict is then the artifact.

    A module without quantizers stays as it is. Raises RuntimeError, with the tensor's name, for a quantizer that was
    left uncalibrated or has a scale that is not finite.
    """
    _check(student)
    for _, layer in quantized_layers(student):
        if not layer.is_finalized:
            layer.keep(layer.weight_quantizer.codes(layer.weight))
    _keep_plain_activation_quantizers(student)


@torch.no_grad()
def restore(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state of a finalized student into a freshly prepared one, strictly, in place.

    Raises RuntimeError where entries are missing, left over or of another shape, or where a scale is no scale.
    """
    for _, layer in quantized_layers(student):
        layer.keep(torch.zeros_like(layer.weight))
    _keep_plain_activation_quantizers(student)
    student.load_state_dict(state, strict=True)
    _check(student)


@torch.no_grad()
def take_over(student: nn.Module, other: nn.Module) -> None:
    """Give a prepared student the weights, all other state and the grids of a finalized one of its kind, in place.

    Its float weights are then what the other's codes stand for, so that it computes the same.
    """
    state = dict(other.state_dict())
    for path, layer in quantized_layers(other):
        del state[f"{path}.weight_codes"]
        state[f"{path}.weight"] = layer.quantized_weight()
    student.load_state_dict(state)
    for _, quantizer in _quantizers(student):
        quantizer.enabled = True


def effective_map(student: nn.Module) -> list[dict[str, Any]]:
    """What a student quantizes, tensor by tensor: name, kind, role, bits, axis and grid; 32 bits for what stays float.

    Bits, axes and grids are those of the quantizers that are there, whatever the scheme says. Weights first, then
    activations, each in execution order; a tensor that `prepare` gave no place comes last. Empty for a network without
    quantizers that was not prepared.
    """
    live = {(quantizer.kind, name): quantizer for name, quantizer in _quantizers(student)}
    recorded = {(entry["kind"], entry["name"]): entry["role"] for entry in recorded_map(student)}
    roles = recorded | {place: quantizer.role for place, quantizer in live.items()}
    return [
        {"name": name, "kind": kind, "role": role, **_grid_of(live.get((kind, name)))}
        for (kind, name), role in roles.items()
    ]


def _grid_of(quantizer: WeightQuantizer | ActivationQuantizer | None) -> dict[str, Any]:
    if quantizer is None:
        return {"bits": FLOAT_BITS, "axis": None, "grid": "float"}
    return {"bits": quantizer.bits, "axis": quantizer.axis, "grid": quantizer.grid}


def measured_map(student: nn.Module) -> list[dict[str, Any]]:
    """`effective_map` with what calibration found: the range of each grid (its extremes over channels), and sizes.

    `groups` is the number of grids of a tensor (channels, or 1) and `elements` the number of a weight's values.
    """
    quantizers = {(quantizer.kind, name): quantizer for name, quantizer in _quantizers(student)}
    layers = dict(quantized_layers(student))
    entries = []
    for entry in effective_map(student):
        quantizer, layer = quantizers.get((entry["kind"], entry["name"])), layers.get(entry["name"])
        measured: dict[str, Any] = {"low": None, "high": None, "groups": None, "elements": None}
        if quantizer is not None:
            low, high = quantizer.range()
            measured |= {"low": low.min().item(), "high": high.max().item(), "groups": low.numel()}
        if entry["kind"] == "weight":
            weight = layer.stored_weight() if layer is not None else student.get_submodule(entry["name"]).weight
            measured["elements"] = cast("Tensor", weight).numel()
        entries.append(entry | measured)
    return entries


def _quantizers(student: nn.Module) -> list[tuple[str, WeightQuantizer] | tuple[str, ActivationQuantizer]]:
    return [*weight_quantizers(student), *activation_quantizers(student)]


def _check(student: nn.Module) -> None:
    for _, quantizer in _quantizers(student):
        quantizer.check()


def _keep_plain_activation_quantizers(student: nn.Module) -> None:
    for path, module in list(student.named_modules()):
        if isinstance(module, ActivationQuantizer):
            student.set_submodule(path, plain(module))
