"""Learning rounding and step sizes unit by unit: the engine under AdaRound, BRECQ, QDrop and GENIE-M."""

from zsqbench.quant.reconstruction.activation_cache import GIB, ActivationCache, LiveTensors, Memory
from zsqbench.quant.reconstruction.draws import draw
from zsqbench.quant.reconstruction.losses import Fisher, reconstruction_loss
from zsqbench.quant.reconstruction.reconstruction import Reconstruction, memory_errors
from zsqbench.quant.reconstruction.rounding import Annealing, SoftRounding
from zsqbench.quant.reconstruction.stage import Draws, InputSource, Rounding, Stage, StepSizes

__all__ = [
    "GIB",
    "ActivationCache",
    "Annealing",
    "Draws",
    "Fisher",
    "InputSource",
    "LiveTensors",
    "Memory",
    "Reconstruction",
    "Rounding",
    "SoftRounding",
    "Stage",
    "StepSizes",
    "draw",
    "memory_errors",
    "reconstruction_loss",
]
