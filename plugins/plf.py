"""PLF: Data-Free Quantization via Pseudo-label Filtering (Fan et al., CVPR 2024): its training, from the text."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator
from zsqbench_plugins.shared.generator_ranges import GeneratorRangesQuantizer
from zsqbench_plugins.shared.protocols import HAST_PROTOCOL

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning

_CIFAR = {"lr": 1e-3, "alpha": 1.0, "lowest": 0.2, "highest": 0.5, "other_weight": 0.3, "feature_weight": 100.0}
_IMAGENET = {"lr": 1e-5, "alpha": 1.0, "lowest": 0.1, "highest": 0.4, "other_weight": 0.5, "feature_weight": 4000.0}


class PLF(GeneratorRangesQuantizer):
    """A student that learns from predicted labels, by their certainty: a reproduction from the text.

    No code was released, so the results cannot be compared with a reference. Labels of the set are not read.
    Self-entropy is the entropy of the float network's prediction, divided by the logarithm of the number of classes. An
    image is reliable if its self-entropy is at most a threshold. The threshold falls from epoch to epoch from `highest`
    towards `lowest`. The loss is

        KL + label_weight (CE_reliable + other_weight CE_other + feature_weight MSE).

    Reliable images have the cross-entropy towards the class that is predicted first. Other images have cross-entropies
    towards the first and the second class, weighed by the probabilities of the two, p1 / (p1 + p2) and p2 / (p1 + p2).
    MSE compares features of both networks.

    A cross-entropy is a mean over its images, as in Eq. 7 and 9, and 0 in a batch without such images. The text leaves
    these choices open:

    - Features: here those of `zsqbench.quant.block_outputs`, mean squares over all values, averaged over layers. The
      equation can also be read as a sum over layers. With a sum, training of a ResNet-20 at 4 and at 3 bits becomes
      infinite or NaN within five updates, at the published weight and learning rate (tried).
    - Scale of KL: its equation has neither a weight nor a temperature. Here it is T^2 KL at T = 20 with `alpha` 1, as
      in the methods on whose training PLF builds. `temperature` 1 is the equation.
    - Time of the threshold's fall: here before each epoch except the first, by the same part. So it is above `lowest`
      in the last epoch.
    - Epochs, batches and cuts of the learning rate: here HAST's.
    - Start and learning of its images: the paper's suite takes `zeroq_il`, which has its losses and their weight.
    - Ranges of activations: here as in `ste`. The deviations of `ste` also apply to this method.
    """

    name = "plf"
    version = 3
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {
            "cifar10": {**HAST_PROTOCOL["cifar10"], **_CIFAR},
            "cifar100": {**HAST_PROTOCOL["cifar100"], **_CIFAR},
            "imagenet": {**HAST_PROTOCOL["imagenet"], **_IMAGENET},
        }
    }
    least_classes = 2

    lowest: Auto[float] = auto(ge=0, le=1, description="self-entropy at which the threshold ends (Tl)")
    highest: Auto[float] = auto(ge=0, le=1, description="self-entropy at which the threshold begins (Tu)")
    label_weight: float = Field(1.0, ge=0, description="weight of all losses except distillation (tau)")
    reliable_weight: float = Field(
        1.0, ge=0, description="weight of the labels of reliable images; 0 disables this loss"
    )
    other_weight: Auto[float] = auto(
        ge=0, description="weight of the labels of other images (beta); 0 disables this loss"
    )
    feature_weight: Auto[float] = auto(ge=0, description="weight of the error of features (mu); 0 disables this loss")

    @model_validator(mode="after")
    def _falls(self) -> "PLF":
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest:g} is above highest {self.highest:g}: the threshold falls")
        return self

    def threshold(self, update: int) -> float:
        """The largest self-entropy of a reliable label at an update, counted from 0."""
        passed = update // self.updates_per_epoch / max(1, self.epochs)
        return self.highest - passed * (self.highest - self.lowest)

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set ranges, then train. Raises ZSQBenchError for a network without features, where these count."""
        import copy

        import torch

        from zsqbench.quant import block_outputs, with_features

        self = self.resolved(teacher, ctx.scheme)
        network = copy.deepcopy(student)  # quantizers round nothing before they are calibrated
        nodes = block_outputs(network) if self.label_weight and self.feature_weight else []
        if self.label_weight and self.feature_weight and not nodes:
            raise zsqbench.ZSQBenchError(
                f"{type(teacher.module).__name__} has no convolution whose features could be compared: take "
                "feature_weight: 0"
            )
        ctx.note(f"features of {len(nodes)} layers are compared: {', '.join(str(node.target) for node in nodes)}")
        taught = with_features(network, nodes)
        self.train_on(
            student,
            teacher,
            data,
            ctx,
            lambda engine: self._gradients(engine, taught, ctx),
            features=[node.name for node in nodes],
            further=lambda update: (torch.full((), self.threshold(update), device=ctx.device),),
        )

    def _gradients(
        self, engine: "FineTuning", network: "fx.GraphModule", ctx: "StepContext"
    ) -> "Callable[[Tensor, Tensor | None, Tensor], Mapping[str, Tensor]]":
        import torch

        from zsqbench.quant import kl_divergence, split_features
        from zsqbench.synthesis import class_logits

        weight = self.label_weight
        of_reliable, of_others, of_features = self.reliable_weight, self.other_weight, self.feature_weight

        def compare(images: "Tensor", threshold: "Tensor") -> "dict[str, Tensor]":
            with torch.no_grad():
                expected, theirs = split_features(network(images))
                expected = class_logits(expected, images)
                reliable = self_entropy(expected) <= threshold
            logits, ours = split_features(engine.network(images))
            logits = class_logits(logits, images)
            sure, unsure = pseudo_label_losses(logits, expected, reliable)
            return {
                "kl": self.alpha * kl_divergence(logits, expected, self.temperature),
                "ce": weight * of_reliable * sure,
                "other_ce": weight * of_others * unsure,
                "mse": weight * of_features * feature_error(ours, theirs) if ours else sure.new_zeros(()),
                "reliable": reliable.float().mean(),
                "agreement": (logits.argmax(1) == expected.argmax(1)).float().mean(),
            }

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", _: "Tensor | None", threshold: "Tensor") -> "Mapping[str, Tensor]":
            found = compiled(images, threshold)
            loss = found["kl"] + found["ce"] + found["other_ce"] + found["mse"]
            torch.autograd.backward(loss)
            return {"loss": loss, **found, "threshold": threshold}

        return gradients


def feature_error(ours: "Sequence[Tensor]", theirs: "Sequence[Tensor]") -> "Tensor":
    """The mean squared difference of feature maps [N, C, H, W], averaged over layers."""
    from zsqbench.quant import alignment_loss

    return alignment_loss(ours, theirs, "direct") / len(ours)


def self_entropy(logits: "Tensor") -> "Tensor":
    """Entropy [N] of the predictions of logits [N, C], divided by log C, its largest value: from 0 to 1."""
    import math

    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


def pseudo_label_losses(logits: "Tensor", expected: "Tensor", reliable: "Tensor") -> "tuple[Tensor, Tensor]":
    """Cross-entropies of a student's logits [N, C] towards the float network's labels, each over its own images.

    Reliable images, true in [N], have the first class as target. Others have the first and the second, each weighed by
    its part of the probability of the two. A mean over no image is 0.
    """
    import torch

    values, classes = expected.topk(2, dim=1)
    losses = -logits.log_softmax(1).gather(1, classes)
    both = (values.softmax(1) * losses).sum(1)
    zero, count = torch.zeros_like(both), reliable.sum()
    sure, unsure = torch.where(reliable, losses[:, 0], zero).sum(), torch.where(reliable, zero, both).sum()
    return sure / count.clamp(min=1), unsure / (len(both) - count).clamp(min=1)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `plf`."""
    return [PLF]
