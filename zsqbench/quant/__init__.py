"""The quantization library: graphs and roles, BN folding, quantizers, ranges, calibration and artifacts."""

from zsqbench.quant.affine import affine_parameters, dequantize, fake_quantize, quantize
from zsqbench.quant.calibrate import (
    Ranges,
    calibrate_activations_minmax,
    calibrate_activations_mse,
    calibrate_weights,
    switched,
)
from zsqbench.quant.fake_quant import ActivationQuantizer, QuantizedLayer, TensorQuantizer, WeightQuantizer
from zsqbench.quant.fold import fold_bn, folded
from zsqbench.quant.graph import capture, roles, tensor_name
from zsqbench.quant.observers import RunningMinMax, include_zero, minmax, mse80
from zsqbench.quant.prepare import (
    activation_quantizers,
    effective_map,
    finalize,
    prepare,
    quantized_layers,
    restore,
    weight_quantizers,
)

__all__ = [
    "ActivationQuantizer",
    "QuantizedLayer",
    "Ranges",
    "RunningMinMax",
    "TensorQuantizer",
    "WeightQuantizer",
    "activation_quantizers",
    "affine_parameters",
    "calibrate_activations_minmax",
    "calibrate_activations_mse",
    "calibrate_weights",
    "capture",
    "dequantize",
    "effective_map",
    "fake_quantize",
    "finalize",
    "fold_bn",
    "folded",
    "include_zero",
    "minmax",
    "mse80",
    "prepare",
    "quantize",
    "quantized_layers",
    "restore",
    "roles",
    "switched",
    "tensor_name",
    "weight_quantizers",
]
