"""Training a classifier by cross-entropy towards labels and distillation from its float network."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning


class LearnsLabels(Protocol):
    """The options of a method that learns from labels and from its float network."""

    @property
    def labels(self) -> Literal["set", "teacher"] | None:
        """Source of labels: the set, or the float network. None: the set where it has labels, else the network."""

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy."""

    @property
    def alpha(self) -> float:
        """Weight of the distillation loss."""

    @property
    def temperature(self) -> float:
        """T, the temperature of logits in the distillation loss."""


def check_labels(method: LearnsLabels, data: "CalibrationSet | None", ctx: "StepContext") -> None:
    """Note the source of labels. Raises ZSQBenchError where the set is the source and has no labels."""
    if not method.ce_weight or data is None or data.labels is not None:
        return
    if method.labels == "set":
        raise zsqbench.ZSQBenchError(
            "the cross-entropy needs labels of the calibration set, which has none: take a generator that makes "
            "labels, or set labels: teacher or ce_weight: 0"
        )
    if method.labels is None:
        ctx.note("labels are the float network's predictions, because the calibration set has none")


def label_gradients(
    method: LearnsLabels, engine: "FineTuning", teacher: "Pretrained", ctx: "StepContext"
) -> "Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]":
    """A function that puts the gradients of CE + alpha T^2 KL on the student's parameters, for images and labels."""
    import torch
    from torch.nn import functional

    from zsqbench.quant import kl_divergence
    from zsqbench.synthesis import class_logits

    def compare(images: "Tensor", labels: "Tensor | None") -> "tuple[Tensor, Tensor, Tensor]":
        with torch.no_grad():
            expected = class_logits(teacher.module(images), images)
        logits = class_logits(engine.network(images), images)
        guesses = expected.argmax(1)
        kl = kl_divergence(logits, expected, method.temperature)
        targets = guesses if labels is None or method.labels == "teacher" else labels
        return kl, functional.cross_entropy(logits, targets), (logits.argmax(1) == guesses).float().mean()

    compiled = ctx.compile(compare)

    def gradients(images: "Tensor", labels: "Tensor | None") -> "Mapping[str, Tensor]":
        kl, ce, agreement = compiled(images, labels)
        loss = method.alpha * kl + method.ce_weight * ce
        torch.autograd.backward(loss)
        return {"loss": loss, "kl": kl, "ce": ce, "agreement": agreement}

    return gradients
