"""Learning of rounding and step sizes unit by unit, by AdaRound or by your own parametrization and loss."""

from zsqbench.quant.reconstruction.activation_cache import GIB, ActivationCache, LiveTensors, Memory
from zsqbench.quant.reconstruction.divided_rounding import DividedRounding, Division
from zsqbench.quant.reconstruction.draws import draw
from zsqbench.quant.reconstruction.losses import Fisher, UnitBatch, UnitLoss, reconstruction_loss
from zsqbench.quant.reconstruction.reconstruction import Reconstruction, memory_errors
from zsqbench.quant.reconstruction.rounding import LearnedRounding, ParameterGroup, RoundingMethod
from zsqbench.quant.reconstruction.soft_rounding import Annealing, Rounding, SoftRounding
from zsqbench.quant.reconstruction.stage import Draws, InputSource, Stage, StepSizes

__all__ = [
    "GIB",
    "ActivationCache",
    "Annealing",
    "DividedRounding",
    "Division",
    "Draws",
    "Fisher",
    "InputSource",
    "LearnedRounding",
    "LiveTensors",
    "Memory",
    "ParameterGroup",
    "Reconstruction",
    "Rounding",
    "RoundingMethod",
    "SoftRounding",
    "Stage",
    "StepSizes",
    "UnitBatch",
    "UnitLoss",
    "draw",
    "memory_errors",
    "reconstruction_loss",
]
