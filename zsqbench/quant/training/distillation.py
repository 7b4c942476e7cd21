"""Knowledge distillation: the loss of a student's logits against its float network's logits."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float, reduction: Literal["batchmean", "mean"] = "batchmean"
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [N, classes], in float32 at least.

    `batchmean` sums over classes, as IntraQ and HAST do. `mean` also averages over classes, as GDFQ, Qimera and AIT do.
    """
    student, teacher = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (student, teacher))
    expected = functional.log_softmax(teacher / temperature, 1)
    found = functional.log_softmax(student / temperature, 1)
    divergence = functional.kl_div(found, expected, reduction="batchmean", log_target=True)
    return temperature**2 * (divergence if reduction == "batchmean" else divergence / student.shape[1])


def map_divergence(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), where each map of an image is one distribution.

    Maps [N, ...] are flattened. Divergences are averaged over images and summed over maps, in float32 at least. There
    is no factor T^2. Li et al. (ICCV 2025) compare the predictions of detectors at each level in this way, boxes
    included.
    """
    pairs = [(ours.flatten(1), theirs.flatten(1)) for ours, theirs in zip(student, teacher, strict=True)]
    each = [kl_divergence(ours, theirs, temperature) / temperature**2 for ours, theirs in pairs]
    return torch.stack(each).sum()
