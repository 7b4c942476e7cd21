"""Learning rounding and step sizes unit by unit: the engine under AdaRound, BRECQ, QDrop and GENIE-M."""

from zsqbench.quant.reconstruction.activation_cache import GIB, Cache, Frontier, Memory
from zsqbench.quant.reconstruction.learning import Context, Draws, Recipe, Rounding, Source, StepSizes, draw
from zsqbench.quant.reconstruction.losses import Fisher, reconstruction_loss
from zsqbench.quant.reconstruction.reconstruction import Reconstruction, memory_errors
from zsqbench.quant.reconstruction.rounding import Annealing, SoftRounding

__all__ = [
    "GIB",
    "Annealing",
    "Cache",
    "Context",
    "Draws",
    "Fisher",
    "Frontier",
    "Memory",
    "Recipe",
    "Reconstruction",
    "Rounding",
    "SoftRounding",
    "Source",
    "StepSizes",
    "draw",
    "memory_errors",
    "reconstruction_loss",
]
