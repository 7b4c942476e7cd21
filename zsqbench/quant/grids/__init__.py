"""Number grids: affine, symmetric and power-of-two arithmetic, and the modules that round tensors to them."""

from zsqbench.quant.grids.affine import (
    Affine,
    affine_parameters,
    along,
    covering_threshold,
    dequantize,
    fake_quantize,
    fake_quantize_identity,
    grid_parameters,
    levels,
    power_of_two,
    quantize,
    symmetric_parameters,
)
from zsqbench.quant.grids.fake_quant import (
    ActivationQuantizer,
    ChosenCodes,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    TensorQuantizer,
    WeightQuantizer,
)

__all__ = [
    "ActivationQuantizer",
    "Affine",
    "ChosenCodes",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "TensorQuantizer",
    "WeightQuantizer",
    "affine_parameters",
    "along",
    "covering_threshold",
    "dequantize",
    "fake_quantize",
    "fake_quantize_identity",
    "grid_parameters",
    "levels",
    "power_of_two",
    "quantize",
    "symmetric_parameters",
]
