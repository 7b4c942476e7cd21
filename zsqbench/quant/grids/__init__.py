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
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
    TensorQuantizer,
    WeightQuantizer,
)
from zsqbench.quant.grids.logarithmic import LogQuantizer, round_logarithmically

__all__ = [
    "ActivationQuantizer",
    "Affine",
    "ChosenCodes",
    "LogQuantizer",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConvTranspose2d",
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
    "round_logarithmically",
    "symmetric_parameters",
]
