"""The library for generator authors: BN statistics and the losses on them, image pipelines, the optimisation loop."""

from zsqbench.synthesis.bn import DGH, GENIE, HAST, ZEROQ, BNGap, BNLoss, BNStatistics
from zsqbench.synthesis.images import SmoothedCrops, blur, clamp_straight_through, gaussian_line
from zsqbench.synthesis.moments import image_moments
from zsqbench.synthesis.optimisation import PixelBatch, Plateau, batch_sizes, optimise
from zsqbench.synthesis.outputs import flat_outputs, stretching
from zsqbench.synthesis.probes import Probes, Seen, batch_norms, frozen
from zsqbench.synthesis.store import MomentStore

__all__ = [
    "DGH",
    "GENIE",
    "HAST",
    "ZEROQ",
    "BNGap",
    "BNLoss",
    "BNStatistics",
    "MomentStore",
    "PixelBatch",
    "Plateau",
    "Probes",
    "Seen",
    "SmoothedCrops",
    "batch_norms",
    "batch_sizes",
    "blur",
    "clamp_straight_through",
    "flat_outputs",
    "frozen",
    "gaussian_line",
    "image_moments",
    "optimise",
    "stretching",
]
