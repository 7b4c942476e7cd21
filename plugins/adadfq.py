"""AdaSG and AdaDFQ: generators that play a game with the student (Qian et al., AAAI 2023 and CVPR 2023)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

import zsqbench
from zsqbench.methods import Auto, Network, auto, data_set
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import Pretrained, StepContext
    from zsqbench.synthesis import BNLoss, ConditionalTraining, GeneratorBatch

SMALLEST_SPAN = 1e-5
"""Distance between the smallest entropy of a batch and log C. Below it, float32 cannot tell images apart."""

_CIFAR: Mapping[str, Any] = {
    "epochs": 396,
    "batch_size": 16,
    "lr": 1e-4,
    "milestones": [96, 196, 296],
    "weight_decay": 1e-4,
    "alpha": 1.0,
    "temperature": 20.0,
    "warmup": 800,
}
_IMAGENET: Mapping[str, Any] = {
    **_CIFAR,
    "epochs": 350,
    "lr": 1e-5,
    "milestones": [300],
    "temperature": 5.0,
    "warmup": 10_000,
}
_SHORTER: Mapping[str, Any] = {"epochs": 300, "warmup": 20_000}
"""ResNet-50 at 3 bits: in 100 of the 400 epochs only the generator learns."""

SCHEDULE = frozenset({"epochs", "warmup", "milestones"})
"""Options that depend on bits for ResNet-50."""

_RESNET50, _MOBILENETV2 = "resnet50", "mobilenetv2"


class AdaSG(zsqbench.CoTrainedQuantizer):
    """GDFQ whose generator seeks images on which float network and student neither agree nor disagree fully.

    t and s are the logits of float network and student. C is the number of classes, and H is the entropy of a softmax.
    H(t - s) is log C where both agree up to a constant. h' spreads H(t - s) over the batch: 0 for the image with the
    smallest value, 1 for log C. Gradients also flow through the smallest value. The generator minimises

        mean max(lambda_l - h', 0) + mean max(h' - lambda_u, 0)
        + beta (alpha_ds CE(t - s, y) + alpha_as CE(t + s, y)) + gamma times the distance from BN statistics

    and its gradient runs through both networks. The student minimises -alpha T^2 H((t - s) / T), without cross-entropy
    and KL. While the generator warms up, it plays against the student as calibrated.

    The class follows the released code (hfutqian/AdaSG). Default values are those of the code: by data set, and for
    ResNet-50 also by bits. The paper was not looked up, so there is no preset. h' depends on the batch. The release
    fixes `batch_size` at 16; another value makes another method.

    Deviations, besides those of `gdfq`:

    - Where all images of a batch agree to float32's precision, h' is 1 and has no gradient (0 / 0 in the release).
    - Each batch of the warm-up counts once for activation ranges. In the release the student sees each batch twice, so
      it counts twice.
    """

    name = "adasg"
    student_from_start: ClassVar[bool] = True
    least_classes: ClassVar[int] = 2
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {
            name: {**values, "lambda_l": 0.3, "alpha_ds": 0.1}
            for name, values in (("cifar10", _CIFAR), ("cifar100", _CIFAR), ("imagenet", _IMAGENET))
        }
    }

    temperature: Auto[float] = auto(
        gt=0, description="T, the temperature of the difference of logits in the student's loss"
    )
    ce_weight: float = Field(0.0, ge=0, description="weight of the student's cross-entropy")
    lambda_l: Auto[float] = auto(ge=0, lt=1, description="lower end of the band of h', where the networks disagree")
    lambda_u: float = Field(0.8, gt=0, le=1, description="upper end of the band of h', where they agree")
    alpha_ds: Auto[float] = auto(ge=0, description="weight of the class loss on the difference of logits")
    alpha_as: float = Field(0.1, ge=0, description="weight of the class loss on the sum of logits")
    beta: float = Field(1.0, ge=0, description="weight of both class losses")
    gamma: float = Field(1.0, ge=0, description="weight of the distance from BN statistics")

    @model_validator(mode="after")
    def _has_a_band(self) -> "AdaSG":
        if self.lambda_l is not None and self.lambda_l >= self.lambda_u:
            raise ValueError(
                f"the band from lambda_l {self.lambda_l:g} to lambda_u {self.lambda_u:g} is empty: take a smaller "
                "lambda_l or a larger lambda_u"
            )
        return self

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The values for the data set; ResNet-50 has a schedule of its own at each number of bits."""
        found = super().automatic(network, scheme)
        if data_set(network) != "imagenet" or family(network) != _RESNET50:
            return found
        if scheme is None:
            return {name: value for name, value in found.items() if name not in SCHEDULE} | {"lr": 1e-4}
        return {**found, "lr": 1e-4, **self.for_resnet50(_bits(scheme))}

    def for_resnet50(self, bits: int) -> Mapping[str, Any]:
        """The schedule at 3, 4 or 5 bits."""
        return {**_SHORTER, "milestones": [100, 200]} if bits == 3 else {"milestones": [150, 250]}  # noqa: PLR2004

    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """GDFQ's generator, with a loss that sees the student.

        Raises ZSQBenchError for fewer than two classes, and where values depend on a scheme that the context lacks.
        """
        from zsqbench_plugins.shared.gdfq_generator import gdfq_training

        if None in (self.lambda_l, self.alpha_ds, self.epochs):
            self.scheme_of(ctx)
        if teacher.classes is not None and teacher.classes < self.least_classes:
            raise zsqbench.ZSQBenchError(
                f"{self.name} compares networks by their classes, and this network has {teacher.classes}: take one "
                f"with at least {self.least_classes}"
            )
        return gdfq_training(
            bn_loss, teacher, self.batch_size, ctx.rng, self.generator_lr, method=self.name, loss=self.generator_loss
        )

    def generator_loss(self, batch: "GeneratorBatch") -> "tuple[Tensor, Mapping[str, Tensor]]":
        """The band, both class losses and the distance from BN statistics."""
        from torch.nn import functional

        assert batch.student_logits is not None  # noqa: S101 - it is there from the start
        teacher, student = batch.logits, batch.student_logits()
        band = band_loss(teacher - student, self.lambda_l, self.lambda_u)
        ds = functional.cross_entropy(teacher - student, batch.labels)
        agreeing = functional.cross_entropy(teacher + student, batch.labels)
        loss = band + self.beta * (self.alpha_ds * ds + self.alpha_as * agreeing) + self.gamma * batch.bn_gap
        return loss, {
            "generator_band": band,
            "generator_ds": ds,
            "generator_as": agreeing,
            "generator_bn": batch.bn_gap,
        }

    def student_terms(
        self, logits: "Tensor", labels: "Tensor", expected: "Tensor"
    ) -> "Mapping[str, tuple[float, Tensor]]":
        """Minus the entropy of the difference, and cross-entropy where it has a weight."""
        from torch.nn import functional

        difference = self.temperature**2 * entropy((expected - logits) / self.temperature).mean()
        return {
            "disagreement": (self.alpha, -difference),
            "ce": (self.ce_weight, functional.cross_entropy(logits, labels)),
        }


class AdaDFQ(AdaSG):
    """AdaSG with its own lower end of the band and its own weight alpha_ds at each bit-width.

    The class follows the released code (hfutqian/AdaDFQ). Its settings files are for 3 bits. For ImageNet, their
    comments give other values for 4 and 5 bits, for ResNet-18, MobileNetV2 and ResNet-50 each. Other networks have the
    values of ResNet-18. The bits are those of weights: fewer than 3 count as 3, more than 5 as 5.

    Deviations: those of `adasg`.
    """

    name = "adadfq"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {
            "cifar10": {**_CIFAR, "lambda_l": 0.1, "alpha_ds": 0.2},
            "cifar100": {**_CIFAR, "lambda_l": 0.1, "alpha_ds": 0.2},
            "imagenet": _IMAGENET,
        }
    }

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The values for the data set, and for ImageNet those for architecture and bits."""
        found = super().automatic(network, scheme)
        if data_set(network) != "imagenet" or scheme is None:
            return found
        lambda_l, alpha_ds = BY_BITS[family(network)][_bits(scheme)]
        return {**found, "lambda_l": lambda_l, "alpha_ds": alpha_ds}

    def for_resnet50(self, bits: int) -> Mapping[str, Any]:
        """The schedule at 3, 4 or 5 bits."""
        own: Mapping[int, Mapping[str, Any]] = {
            3: {**_SHORTER, "milestones": [50, 200]},
            4: {"milestones": [150, 250]},
            5: {"milestones": [300]},
        }
        return own[bits]


BY_BITS: Mapping[str | None, Mapping[int, tuple[float, float]]] = {
    None: {3: (0.1, 0.2), 4: (0.3, 0.2), 5: (0.3, 0.3)},
    _MOBILENETV2: {3: (0.1, 0.2), 4: (0.1, 0.3), 5: (0.1, 0.2)},
    _RESNET50: {3: (0.4, 0.2), 4: (0.3, 0.1), 5: (0.3, 0.2)},
}
"""AdaDFQ's lambda_l and alpha_ds for ImageNet, by architecture and bits. None: ResNet-18 and all other networks."""


def family(network: Network) -> str | None:
    """The architecture that decides the values, or None.

    Names of libraries are unified: torchvision/mobilenet_v2 is mobilenetv2.
    """
    name = (network.architecture or "").rpartition("/")[2].replace("_", "")
    return next((each for each in (_RESNET50, _MOBILENETV2) if name.startswith(each)), None)


def _bits(scheme: Scheme) -> int:
    """The bits of a scheme's weights, moved into the range of released values, 3 to 5."""
    return min(5, max(3, scheme.weight_bits))


def entropy(logits: "Tensor") -> "Tensor":
    """The entropy [N] of the softmax of logits [N, classes], 0 to log(classes)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def band_loss(difference: "Tensor", low: float, high: float) -> "Tensor":
    """The mean distance of the images of a batch from a band of h', a scalar, for differences of logits [N, classes].

    The distance is 0 in the band. Where all images agree to float32's precision, h' is 1 and has no gradient.
    """
    import torch

    entropies = entropy(difference)
    smallest = entropies.min()
    span = math.log(difference.shape[1]) - smallest
    agreement = (entropies - smallest) / span.clamp_min(SMALLEST_SPAN)
    agreement = torch.where(span > SMALLEST_SPAN, agreement, torch.ones_like(agreement))
    return (low - agreement).relu().mean() + (agreement - high).relu().mean()


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `adasg` and `adadfq`."""
    return [AdaSG, AdaDFQ]
