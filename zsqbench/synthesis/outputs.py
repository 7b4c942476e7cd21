"""Losses on a network's outputs in any form: one tensor, or several in tuples, lists and dictionaries."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError

EASIEST = 1e-12
"""Smallest difficulty, of a sample whose label has all of the probability."""


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


class RawOutputs:
    """The raw outputs of a network while the block lasts: its return value, or the outputs of some of its modules.

    A detector decodes the outputs of its heads, and calls shared heads once for each level of its pyramid.
    """

    def __init__(self, module: nn.Module, names: Sequence[str] = ()) -> None:
        """`names` are paths of the modules. Without names, the network returns its raw outputs."""
        self._module, self._names = module, names
        self._given: dict[str, list[Tensor]] = {name: [] for name in names}
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        if self._names:
            self._resources.callback(self._module.register_forward_pre_hook(self._forget).remove)
        for name in self._names:
            hook = self._module.get_submodule(name).register_forward_hook(partial(self._keep, name))
            self._resources.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        self._forget()

    def of(self, returned: Any) -> list[Tensor]:
        """Each output of the last pass, which returned this, as [N, values], over all calls; in float32 at least."""
        if not self._names:
            return flat_outputs(returned)
        return [torch.cat(flat_outputs(self._given[name]), 1) for name in self._names]

    def _forget(self, *_: object) -> None:
        self._given = {name: [] for name in self._names}

    def _keep(self, name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        self._given[name].append(output)


def stretching(
    outputs: list[Tensor],
    moments: Sequence[Tensor],
    target: Sequence[Tensor],
    slack: float = 0.5,
    *,
    constrain_each: bool = True,
) -> Tensor:
    """DGH's output distribution stretching loss: minus each image's range of outputs, while its features stay normal.

    `moments` are mean and deviation [N, C] of each image at the last batch normalisation, `target` the stored ones [C].
    Their mean squared gaps count beyond the slack: once, or for each output as in the release. Without moments, nothing
    limits the range.
    """
    excess = outputs[0].new_zeros(len(outputs[0]))
    for of_image, stored in zip(moments, target, strict=True):
        excess = excess + ((of_image - stored).square().mean(1) - slack).clamp_min(0)
    spread = torch.stack([(output.amax(1) - output.amin(1)).mean() for output in outputs]).sum()
    return excess.mean() * (len(outputs) if constrain_each else 1) - spread


def class_logits(outputs: Any, labels: Tensor) -> Tensor:
    """The logits [N, classes] in a classifier's return value for images with these labels.

    Raises ZSQBenchError where it is not one tensor with two dimensions, as for a detector.
    """
    found = flat_outputs(outputs)
    shape = tuple(found[0].shape) if isinstance(outputs, Tensor) and outputs.dim() == 2 else None  # noqa: PLR2004
    if shape is None or shape[0] != len(labels):
        raise ZSQBenchError(
            f"labels ask for logits, one row of classes for each of {len(labels)} images, and the network returns "
            f"{type(outputs).__name__ if shape is None else shape}"
        )
    return found[0]


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """HAST's sample difficulty 1 - p [N] (Eq. 7), p being the probability of the label; exact also for p near 1.

    It is at least 1e-12, and its gradient there is 0, because the slope of a root at 0 is infinite.
    """
    return _difficulty(functional.cross_entropy(logits, labels, reduction="none"))


def inception_loss(logits: Tensor, labels: Tensor, gamma: float = 0.0) -> Tensor:
    """Mean cross-entropy towards the labels; with gamma, HAST's hard-sample-enhanced one (Eq. 8).

    With gamma, each sample is weighed by its difficulty to the power of gamma. Gradients flow through the weight, as in
    the release.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return (losses * _difficulty(losses) ** gamma).mean() if gamma else losses.mean()


def _difficulty(losses: Tensor) -> Tensor:
    return (-torch.expm1(-losses)).clamp_min(EASIEST)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.dim() > 1 and outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, list | tuple):
        return []
    return [tensor for part in outputs for tensor in _tensors(part)]
