"""The library for generator authors: BN statistics and the losses on them, image pipelines, the optimisation loop."""

from zsqbench.synthesis.bn import DGH, GENIE, HAST, ZEROQ, BNGap, BNLoss, BNStatistics
from zsqbench.synthesis.conditional import (
    ConditionalImages,
    ConditionalTraining,
    Conditioning,
    class_weights,
    gdfq_training,
    require_classes,
)
from zsqbench.synthesis.diagnostics import Diagnostics, diagnose
from zsqbench.synthesis.features import Features
from zsqbench.synthesis.images import (
    Crops,
    SmoothedCrops,
    blur,
    clamp_straight_through,
    gaussian_line,
    random_crops,
    resized_crops,
)
from zsqbench.synthesis.moments import image_moments
from zsqbench.synthesis.networks import Doubled, initialise, load_training, part, training_state
from zsqbench.synthesis.optimisation import Batch, PixelBatch, Plateau, RectifiedAdam, batch_sizes, optimise
from zsqbench.synthesis.outputs import (
    EASIEST,
    RawOutputs,
    class_logits,
    difficulty,
    flat_outputs,
    inception_loss,
    stretching,
)
from zsqbench.synthesis.probes import Probes, Seen, batch_norms, follow_convolutions, frozen
from zsqbench.synthesis.store import MomentStore
from zsqbench.synthesis.swing import SwingConvolutions

__all__ = [
    "DGH",
    "EASIEST",
    "GENIE",
    "HAST",
    "ZEROQ",
    "BNGap",
    "BNLoss",
    "BNStatistics",
    "Batch",
    "ConditionalImages",
    "ConditionalTraining",
    "Conditioning",
    "Crops",
    "Diagnostics",
    "Doubled",
    "Features",
    "MomentStore",
    "PixelBatch",
    "Plateau",
    "Probes",
    "RawOutputs",
    "RectifiedAdam",
    "Seen",
    "SmoothedCrops",
    "SwingConvolutions",
    "batch_norms",
    "batch_sizes",
    "blur",
    "clamp_straight_through",
    "class_logits",
    "class_weights",
    "diagnose",
    "difficulty",
    "flat_outputs",
    "follow_convolutions",
    "frozen",
    "gaussian_line",
    "gdfq_training",
    "image_moments",
    "inception_loss",
    "initialise",
    "load_training",
    "optimise",
    "part",
    "random_crops",
    "require_classes",
    "resized_crops",
    "stretching",
    "training_state",
]
