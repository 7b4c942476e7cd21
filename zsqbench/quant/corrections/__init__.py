"""Corrections in closed form: equalization, shift negative correction, bias correction, moments from only BN."""

from zsqbench.quant.corrections.bias import absorbed_biases, corrected_bias, kernel_share
from zsqbench.quant.corrections.bn_moments import Moments, input_moments, norm_moments
from zsqbench.quant.corrections.equalization import (
    Equalized,
    balancing_factors,
    dead_channels,
    equalization_factors,
    equalize,
    per_input,
    rescale,
)
from zsqbench.quant.corrections.second_moment import Rescaling, second_moment_correction
from zsqbench.quant.corrections.shift_negative import ShiftedGrid, best_shifted_grid, shifted_grid

__all__ = [
    "Equalized",
    "Moments",
    "Rescaling",
    "ShiftedGrid",
    "absorbed_biases",
    "balancing_factors",
    "best_shifted_grid",
    "corrected_bias",
    "dead_channels",
    "equalization_factors",
    "equalize",
    "input_moments",
    "kernel_share",
    "norm_moments",
    "per_input",
    "rescale",
    "second_moment_correction",
    "shifted_grid",
]
