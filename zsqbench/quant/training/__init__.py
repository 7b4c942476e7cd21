"""Training a student as a whole: fine-tuning, distillation, feature alignment, recorded GPU updates."""

from zsqbench.quant.training.cuda_graphs import RecordedFunction
from zsqbench.quant.training.distillation import kl_divergence, map_divergence
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
    LearnedWeight,
    Schedule,
    TrainedActivation,
    TrainedWeight,
    pass_gradients,
    span_weights,
    student_state,
)
from zsqbench.quant.training.step_sizes import begin_steps

__all__ = [
    "Alignment",
    "FineTuning",
    "LearnedWeight",
    "RecordedFunction",
    "Schedule",
    "TrainedActivation",
    "TrainedWeight",
    "alignment_loss",
    "attention",
    "begin_steps",
    "block_outputs",
    "from_features",
    "kl_divergence",
    "map_divergence",
    "pass_gradients",
    "span_weights",
    "split_features",
    "student_state",
    "with_features",
]
