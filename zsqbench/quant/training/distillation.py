"""Losses of a student against its float network: on logits (knowledge distillation), and on features."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Alignment = Literal["attention", "paper_attention", "direct"]
"""What of two feature maps is compared: attention vectors as HAST's release computes them, as its paper defines them,
or the maps themselves."""


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float, reduction: Literal["batchmean", "mean"] = "batchmean"
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [N, classes], in float32 at least.

    `batchmean` sums over classes, as IntraQ and HAST do; `mean` averages over them, too, as GDFQ, Qimera and AIT do.
    """
    student, teacher = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (student, teacher))
    expected = functional.log_softmax(teacher / temperature, 1)
    found = functional.log_softmax(student / temperature, 1)
    divergence = functional.kl_div(found, expected, reduction="batchmean", log_target=True)
    return temperature**2 * (divergence if reduction == "batchmean" else divergence / student.shape[1])


def attention(features: Tensor) -> Tensor:
    """HAST's attention vector [N, C] of maps [N, C, H, W]: the mean square of each channel, normalised over channels.

    That is what the release computes. Eq. 14 of the paper is the sum of squares, as it is.
    """
    return functional.normalize(features.float().square().mean((2, 3)), dim=1)


def alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], form: Alignment = "attention") -> Tensor:
    """How far feature maps [N, C, H, W] of a student are from those of its float network.

    `attention`, as released: squared differences of normalised attention vectors, averaged over images and channels and
    summed over layers. `paper_attention` (Eq. 13 and 14): squared distances of sums of squares, averaged over images
    and layers. `direct`: squared differences of the maps, averaged over all values and summed over layers.
    """
    pairs = list(zip(student, teacher, strict=True))
    if form == "attention":
        return torch.stack([functional.mse_loss(attention(ours), attention(theirs)) for ours, theirs in pairs]).sum()
    if form == "direct":
        return torch.stack([functional.mse_loss(ours.float(), theirs.float()) for ours, theirs in pairs]).sum()
    energies = [[each.float().square().sum((2, 3)) for each in pair] for pair in pairs]
    return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in energies]).mean()
