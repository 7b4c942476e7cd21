"""The library for generator authors: BN statistics and the losses on them, image pipelines, the optimisation loop."""

from zsqbench.synthesis.attention_diagnostics import ALL_TOKENS, CLASS_TOKEN, MapForm, OpenAttention
from zsqbench.synthesis.attention_maps import attention_map, gaussian_mixtures, map_loss, soft_labels
from zsqbench.synthesis.bn_loss import DEEP_INVERSION, DGH, GENIE, HAST, ZEROQ, BNGap, BNLoss, BNStatistics
from zsqbench.synthesis.channel_moments import image_moments
from zsqbench.synthesis.conditional import (
    ConditionalGenerator,
    ConditionalTraining,
    GeneratorBatch,
    GeneratorLoss,
)
from zsqbench.synthesis.diagnostics import Diagnostics, ImageStatistics, diagnose, penultimate_features
from zsqbench.synthesis.generator_networks import Doubled, initialize, load_training, part, training_state
from zsqbench.synthesis.images import (
    Crops,
    SmoothedCrops,
    blur,
    clamp_straight_through,
    gaussian_line,
    random_crops,
    resized_crops,
    total_variation,
)
from zsqbench.synthesis.moment_store import MomentStore
from zsqbench.synthesis.optimization import (
    Batch,
    Cosine,
    PixelBatch,
    Plateau,
    RectifiedAdam,
    WarmedCosine,
    batch_sizes,
    optimize,
)
from zsqbench.synthesis.outputs import (
    EASIEST,
    RawOutputs,
    class_logits,
    difficulty,
    flat_outputs,
    inception_loss,
    stretching,
)
from zsqbench.synthesis.patch_similarity import patch_entropy, patch_features, patch_spread
from zsqbench.synthesis.penultimate_features import PenultimateFeatures
from zsqbench.synthesis.probes import Probes, Seen, batch_norms, follow_convolutions, frozen
from zsqbench.synthesis.swing import SwingConvolutions

__all__ = [
    "ALL_TOKENS",
    "CLASS_TOKEN",
    "DEEP_INVERSION",
    "DGH",
    "EASIEST",
    "GENIE",
    "HAST",
    "ZEROQ",
    "BNGap",
    "BNLoss",
    "BNStatistics",
    "Batch",
    "ConditionalGenerator",
    "ConditionalTraining",
    "Cosine",
    "Crops",
    "Diagnostics",
    "Doubled",
    "GeneratorBatch",
    "GeneratorLoss",
    "ImageStatistics",
    "MapForm",
    "MomentStore",
    "OpenAttention",
    "PenultimateFeatures",
    "PixelBatch",
    "Plateau",
    "Probes",
    "RawOutputs",
    "RectifiedAdam",
    "Seen",
    "SmoothedCrops",
    "SwingConvolutions",
    "WarmedCosine",
    "attention_map",
    "batch_norms",
    "batch_sizes",
    "blur",
    "clamp_straight_through",
    "class_logits",
    "diagnose",
    "difficulty",
    "flat_outputs",
    "follow_convolutions",
    "frozen",
    "gaussian_line",
    "gaussian_mixtures",
    "image_moments",
    "inception_loss",
    "initialize",
    "load_training",
    "map_loss",
    "optimize",
    "part",
    "patch_entropy",
    "patch_features",
    "patch_spread",
    "penultimate_features",
    "random_crops",
    "resized_crops",
    "soft_labels",
    "stretching",
    "total_variation",
    "training_state",
]
