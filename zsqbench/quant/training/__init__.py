"""Training a student as a whole: fine-tuning, distillation, feature alignment, recorded GPU updates."""

from zsqbench.quant.training.cuda_graphs import RecordedFunction
from zsqbench.quant.training.distillation import kl_divergence
from zsqbench.quant.training.feature_alignment import (
    Alignment,
    alignment_loss,
    attention,
    block_outputs,
    from_features,
    split_features,
    with_features,
)
from zsqbench.quant.training.finetuning import (
    FineTuning,
    Schedule,
    TrainedActivation,
    TrainedWeight,
    span_weights,
    student_state,
)

__all__ = [
    "Alignment",
    "FineTuning",
    "RecordedFunction",
    "Schedule",
    "TrainedActivation",
    "TrainedWeight",
    "alignment_loss",
    "attention",
    "block_outputs",
    "from_features",
    "kl_divergence",
    "span_weights",
    "split_features",
    "student_state",
    "with_features",
]
