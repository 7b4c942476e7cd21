"""A student whose quantizers are operators of ONNX. torch's exporter writes it to a file."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.errors import ZSQBenchError
from zsqbench.export import OPSET
from zsqbench.export.integers import Bias
from zsqbench.quant import ActivationQuantizer, LogQuantizer, QuantizedLayer, quantized_layers
from zsqbench.quant.grids import levels

TENSOR, TOP, LAYER = "zsqbench_tensor", "zsqbench_top", "zsqbench_layer"
"""Attributes that symbols carry through the exporter: the name of a tensor, the largest code of its grid, the path of
a layer. The passes over the exported graph read and remove them."""

BYTE = 8


def with_symbols(student: fx.GraphModule, biases: Mapping[str, Bias]) -> fx.GraphModule:
    """A copy of a finalized student, made of QuantizeLinear, DequantizeLinear and torch's own layers.

    It cannot run, and is only for torch.onnx.export. Raises ZSQBenchError for a grid whose zero point is not one of its
    codes, because no runtime can store it.
    """
    student = copy.deepcopy(student)
    for path, layer in quantized_layers(student):
        student.set_submodule(path, _StoredLayer(path, layer, biases.get(path)))
    for path, module in list(student.named_modules()):
        if isinstance(module, ActivationQuantizer):
            student.set_submodule(path, _StoredTensor(module))
    return student


class _StoredTensor(nn.Module):
    """The pair QuantizeLinear, DequantizeLinear of an activation, on unsigned integers of 8 bits (16 above 8 bits)."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        if isinstance(quantizer, LogQuantizer):
            raise ZSQBenchError(
                f"tensor {quantizer.name!r} has the grid {quantizer.grid_name}, which ONNX has no operator for; "
                "take a scheme of affine grids, such as qdq/w8a8"
            )
        self.name, self.top = quantizer.name, levels(quantizer.bits)
        _check_zero_point("tensor", quantizer.name, quantizer.zero_point, self.top)
        self.dtype = torch.uint8 if quantizer.bits <= BYTE else torch.uint16
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The values of x on the grid."""
        carried = {TENSOR: self.name, TOP: self.top}
        codes = _symbol("QuantizeLinear", [x, self.scale, self.zero_point], x, carried, self.dtype)
        return _symbol("DequantizeLinear", [codes, self.scale, self.zero_point], x)


class _StoredLayer(nn.Module):
    """A layer whose weight is DequantizeLinear of signed integers, and whose bias is that of 32-bit integers."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_codes: Tensor | None
    bias_scale: Tensor

    def __init__(self, path: str, layer: QuantizedLayer, bias: Bias | None) -> None:
        super().__init__()
        quantizer = layer.weight_quantizer
        _check_zero_point("weight", path, quantizer.zero_point, levels(quantizer.bits))
        self.path, self.layer, self.axis = path, layer, 0 if quantizer.axis is not None else None
        middle = 2 ** (quantizer.bits - 1)
        dtype = torch.int8 if quantizer.bits <= BYTE else torch.int16
        shape = () if self.axis is None else (-1,)
        self.register_buffer("codes", (layer.weight_codes.int() - middle).to(dtype))
        self.register_buffer("scale", quantizer.scale.reshape(shape).clone())
        self.register_buffer("zero_point", (quantizer.zero_point.reshape(shape) - middle).to(dtype))
        self.register_buffer("bias_codes", None if bias is None else bias.codes)
        self.register_buffer("bias_scale", self.scale if bias is None else bias.scale)

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The layer's output for x."""
        carried: dict[str, Any] = {LAYER: self.path} | ({} if self.axis is None else {"axis": self.axis})
        weight = _symbol("DequantizeLinear", [self.codes, self.scale, self.zero_point], self.codes, carried)
        bias = cast("Tensor | None", self.layer.bias)
        if self.bias_codes is not None:
            bias = _symbol("DequantizeLinear", [self.bias_codes, self.bias_scale], self.bias_codes, {"axis": 0})
        return self.layer.computed(x, weight, bias, *rest)


def _symbol(
    name: str,
    inputs: list[Tensor],
    like: Tensor,
    attributes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An operator of ONNX. Its result has the shape of `like`."""
    return torch.onnx.ops.symbolic(name, inputs, dict(attributes or {}), dtype=dtype, shape=like.shape, version=OPSET)


def _check_zero_point(what: str, name: str, zero_point: Tensor, top: int) -> None:
    if not ((zero_point >= 0) & (zero_point <= top)).all():
        raise ZSQBenchError(
            f"the grid of {what} {name!r} does not hold zero: its zero point {zero_point.min():g} to "
            f"{zero_point.max():g} is none of the codes 0 to {top}, and runtimes store zero points as codes; quantize "
            "again at a scheme with weight_grid: symmetric, such as qdq/w8a8"
        )
