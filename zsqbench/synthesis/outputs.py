"""Losses on what a network returns, whatever the form: one tensor, or several in tuples, lists and dictionaries."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zsqbench.errors import ZSQBenchError


def flat_outputs(outputs: Any) -> list[Tensor]:
    """All tensors that a network returned, each as [N, values], in float32 at least.

    Raises ZSQBenchError where there is none.
    """
    found = [tensor.flatten(1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in _tensors(outputs)]
    if not found:
        raise ZSQBenchError(
            f"the network returns {type(outputs).__name__}, in which there is no tensor with a row for each image"
        )
    return found


def stretching(
    outputs: list[Tensor], moments: Sequence[Tensor], target: Sequence[Tensor], slack: float = 0.5
) -> Tensor:
    """DGH's output distribution stretching loss: minus each image's range of outputs, while its features stay normal.

    `moments` are mean and deviation [N, C] of each image at the last batch normalisation, `target` those [C] that it
    stores; their mean squared gaps count beyond the slack, and as in the release once for each output. Where there are
    none, nothing holds the range.
    """
    excess = outputs[0].new_zeros(len(outputs[0]))
    for of_image, stored in zip(moments, target, strict=True):
        excess = excess + ((of_image - stored).square().mean(1) - slack).clamp_min(0)
    return torch.stack([(excess - (output.amax(1) - output.amin(1))).mean() for output in outputs]).sum()


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.dim() > 1 and outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, list | tuple):
        return []
    return [tensor for part in outputs for tensor in _tensors(part)]
