"""Turn a calibrated student into its artifact with integer weights, and back; and list its quantized tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from zsqbench.quant.grids.fake_quant import ActivationQuantizer, TensorQuantizer, WeightQuantizer, plain
from zsqbench.quant.student import activation_quantizers, quantized_layers, tensor_roles, weight_quantizers
from zsqbench.scheme import FLOAT_BITS, MeasuredTensor, TensorOnGrid


@torch.no_grad()
def finalize(student: nn.Module) -> None:
    """Turn weights into integers and drop data that only training needed, in place. The state dict is the artifact.

    A module without quantizers is not changed. Raises RuntimeError, with the tensor's name, for a quantizer that was
    not calibrated or has a scale that is not finite.
    """
    _check(student)
    for _, layer in quantized_layers(student):
        if not layer.is_finalized:
            layer.keep(layer.weight_quantizer.codes(layer.weight))
    _keep_plain_activation_quantizers(student)


@torch.no_grad()
def restore(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state of a finalized student into a freshly prepared student, strictly, in place.

    Extra state of modules that the state lacks stays, because `prepare` has copied it from the teacher. Raises
    RuntimeError if entries are missing, left over or of another shape, or if a scale is invalid.
    """
    for _, layer in quantized_layers(student):
        layer.keep(torch.zeros_like(layer.weight))
    _keep_plain_activation_quantizers(student)
    keys = student.load_state_dict(state, strict=False)
    differing = [name for name in (*keys.missing_keys, *keys.unexpected_keys) if not name.endswith("_extra_state")]
    if differing:
        raise RuntimeError(f"the state and the student differ in {', '.join(differing)}")
    _check(student)


@torch.no_grad()
def take_over(student: nn.Module, other: nn.Module) -> None:
    """Give a prepared student the weights, other state and grids of a finalized student of its kind, in place.

    Its float weights are then the values of the other's codes, so that both compute the same.
    """
    state = dict(other.state_dict())
    for path, layer in quantized_layers(other):
        del state[f"{path}.weight_codes"]
        state[f"{path}.weight"] = layer.quantized_weight()
    student.load_state_dict(state)
    for _, quantizer in _quantizers(student):
        quantizer.enabled = True


def effective_map(student: nn.Module) -> list[TensorOnGrid]:
    """The tensors of a student, each with its role, bits and grid. 32 bits: the tensor stays float.

    Bits, axes and grids are those of the present quantizers, even if the scheme differs. An axis refers to the weight
    of torch's layer (1 in a transposed convolution). Weights come first, then activations, each in execution order. A
    tensor without a place from `prepare` comes last. Empty: the network has no quantizers and was not prepared.
    """
    live = {(quantizer.kind, name): quantizer for name, quantizer in _quantizers(student)}
    roles = tensor_roles(student) | {place: quantizer.role for place, quantizer in live.items()}
    axes = {("weight", path): layer.output_axis for path, layer in quantized_layers(student)}
    return [_on_grid(*place, role, live.get(place), axes.get(place)) for place, role in roles.items()]


def _on_grid(
    kind: str, name: str, role: str, quantizer: TensorQuantizer | None, output_axis: int | None
) -> TensorOnGrid:
    if quantizer is None:
        return TensorOnGrid(kind, name, role, FLOAT_BITS)
    axis = None if quantizer.axis is None else output_axis
    return TensorOnGrid(kind, name, role, quantizer.bits, quantizer.grid_name, axis)


def measured_map(student: nn.Module) -> list[MeasuredTensor]:
    """`effective_map` with results of calibration: the range of each grid (its extremes over channels), and sizes."""
    quantizers = {(quantizer.kind, name): quantizer for name, quantizer in _quantizers(student)}
    layers = dict(quantized_layers(student))
    entries = []
    for tensor in effective_map(student):
        quantizer, layer, elements = quantizers.get((tensor.kind, tensor.name)), layers.get(tensor.name), None
        if tensor.kind == "weight":
            weight = layer.stored_weight() if layer is not None else student.get_submodule(tensor.name).weight
            elements = cast("Tensor", weight).numel()
        measured = MeasuredTensor(**vars(tensor), elements=elements)
        if quantizer is not None:
            low, high = quantizer.range()
            measured = replace(measured, low=low.min().item(), high=high.max().item(), groups=low.numel())
        entries.append(measured)
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
