"""HAST: Hard Sample Matters a Lot in Zero-Shot Quantization (Li et al., CVPR 2023): its images, and its training."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from zsqbench_plugins.shared.generator_ranges import GeneratorRangesQuantizer
from zsqbench_plugins.shared.labelled import InceptionGenerator
from zsqbench_plugins.shared.protocols import HAST_PROTOCOL

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning

_GAMMA = {"cifar10": 2.0, "cifar100": 2.0, "imagenet": 0.5}


class ZeroQIL(InceptionGenerator):
    """ZeroQ in batch form with an inception loss: statistics of the batch, and cross-entropy towards random labels.

    The baseline "ZeroQ+IL" of HAST's and IntraQ's tables (HAST, Eq. 3 to 5), and not the method `zeroq`, which matches
    each image. Nobody released it by itself; it is HAST's code with gamma 0, which HAST's ablation calls its baseline:
    mean and variance of each batch of 256 at every BN layer, mean squared gaps averaged over layers, plus `beta` times
    the mean cross-entropy; Adam on standard normal pixels.

    The default preset is `released`, HAST's code: beta 10 for CIFAR, without crops, and 0.1 for ImageNet, with crops of
    40 % of the area at least in half of the iterations. `paper` crops as in IntraQ, as the paper says: 50 % at least,
    for all data sets. The paper takes beta from IntraQ, too, which has none, so it is the code's in both.

    Deviations: a smaller last batch where `images` is no multiple of `batch_size`; seeded (the release makes 5,120
    images in four unseeded processes).
    """

    name = "zeroq_il"

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self = self.resolved(teacher)
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            return self.synthesize(teacher, ctx, self.towards_classes(bn_loss, ctx), ctx.resume() or {})


class HAST(InceptionGenerator):
    """Images that are hard to classify: `zeroq_il`, where each sample's class loss counts by its difficulty to a power.

    Difficulty is one minus the probability of the label (Eq. 7), and its power `gamma` weighs the cross-entropy (Eq. 8
    and 9), so that images stop before they are trivial. Gradients flow through the weight, as in the release. gamma is
    2 for CIFAR and 0.5 for ImageNet. This is the synthesis; most of HAST's gain comes from its fine-tuning.

    Presets and deviations are those of `zeroq_il`; besides, difficulty is at least 1e-12, for with gamma 0.5 the
    release makes NaN of an image whose label has all of the probability.
    """

    name = "hast"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
        preset: {name: {**values, "gamma": _GAMMA[name]} for name, values in data_sets.items()}
        for preset, data_sets in InceptionGenerator.presets.items()
    }

    gamma: Auto[float] = auto(ge=0, description="power of a sample's difficulty that weighs its class loss")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss

        self = self.resolved(teacher)
        with BNLoss(teacher.module, synthesis.HAST) as bn_loss:
            losses = self.towards_classes(bn_loss, ctx, self.gamma)
            return self.synthesize(teacher, ctx, losses, ctx.resume() or {})


_RELEASED = {"alignment_weight": 1000.0, "epsilon": 0.01}
_PAPER = {
    "cifar10": {**HAST_PROTOCOL["cifar10"], "alignment_weight": 1000.0, "epsilon": 0.01},
    "cifar100": {**HAST_PROTOCOL["cifar100"], "alignment_weight": 2000.0, "epsilon": 0.02},
    "imagenet": {**HAST_PROTOCOL["imagenet"], "alignment_weight": 4000.0, "epsilon": 0.01},
}


class HASTTraining(GeneratorRangesQuantizer):
    """A student that learns on images and on harder versions of them, with features aligned with the float network's.

    Each image is moved by `epsilon`, in normalised pixels, along the sign of the gradient of what the student is
    trained to minimise: its difficulty is promoted. The student then learns from both (`original_weight`,
    `promoted_weight`; Table 6): alpha T^2 KL, and `alignment_weight` (lambda) times the distance between attention
    vectors of what blocks give before their additions (Eq. 11 to 14). There is no cross-entropy.

    Follows the released code where the paper differs: the loss of KL and alignment is what is promoted, not the
    student's error on a label (its Table 5 says so, too); its gradient goes through the float network as well; the
    promoted image is compared with the float network's output there; lambda weighs the alignment only; attention
    vectors are normalised means, averaged over channels and summed over layers (`alignment: paper_attention` is Eq. 13
    and 14 to the letter, for which the published lambdas are far too large); T = 20. Layers are chosen by
    `zsqbench.quant.block_outputs`.

    The default preset is `paper`: lambda and epsilon for each data set, which the release's files of settings have,
    too, and its parser never reads. `released` is what the parser takes instead: 1000 and 0.01 for all. How it is
    trained besides, and all deviations, are those of `ste`.
    """

    name = "hast"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": _PAPER,
        "released": {name: {**values, **_RELEASED} for name, values in _PAPER.items()},
    }

    preset: Literal["paper", "released"] = Field("paper", description="values of the options that are not given")
    promotion: Literal["kl_fa", "kl", "fa", "none"] = Field(
        "kl_fa", description="what harder images have more of: distillation loss, misaligned features, or both"
    )
    epsilon: Auto[float] = auto(ge=0, description="how far a pixel is moved for that, in normalised pixels")
    alignment: Literal["attention", "paper_attention", "direct", "none"] = Field(
        "attention",
        description="what of features is aligned: normalised attention, as released; the paper's; themselves",
    )
    alignment_weight: Auto[float] = auto(ge=0, description="weight of the alignment (lambda)")
    original_weight: float = Field(1.0, ge=0, description="weight of the losses on the images as they are")
    promoted_weight: float = Field(1.0, ge=0, description="weight of the losses on the harder ones")

    @model_validator(mode="after")
    def _has_what_it_promotes(self) -> "HASTTraining":
        if self.promotion == "fa" and self.alignment == "none":
            raise ValueError("promotion fa is of features, and alignment none aligns none")
        if not self.original_weight and (not self.promoted_weight or self.promotion == "none"):
            raise ValueError("original_weight is 0, and nothing else is trained on")
        return self

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set ranges, then train."""
        import copy

        from zsqbench.quant import block_outputs, with_features

        self = self.resolved(teacher, ctx.scheme)
        network = copy.deepcopy(student)  # quantizers round nothing before they are calibrated
        nodes = block_outputs(network) if self.alignment != "none" else []
        if self.alignment != "none" and not nodes:
            raise zsqbench.ZSQBenchError(
                f"{type(teacher.module).__name__} has no convolution to align: take alignment: none"
            )
        names = [node.name for node in nodes]
        ctx.note(f"{len(names)} layers are aligned: {', '.join(str(node.target) for node in nodes)}")
        taught = with_features(network, nodes)
        self.train_on(student, teacher, data, ctx, lambda engine: self._gradients(engine, taught, ctx), features=names)

    def _gradients(
        self,
        engine: "FineTuning",
        network: "fx.GraphModule",
        ctx: "StepContext",
    ) -> "Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]":
        import torch

        from zsqbench.quant import alignment_loss, kl_divergence, split_features
        from zsqbench.synthesis import class_logits

        alpha, weight, epsilon = self.alpha, self.alignment_weight, self.epsilon

        def compare(images: "Tensor", expected: "Tensor", features: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
            logits, found = split_features(engine.network(images))
            logits = class_logits(logits, images)
            kl = alpha * kl_divergence(logits, expected, self.temperature)
            agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
            if self.alignment == "none":
                return kl, kl.new_zeros(()), agreement
            return kl, weight * alignment_loss(found, features, self.alignment), agreement

        def teach(images: "Tensor") -> "tuple[Tensor, tuple[Tensor, ...]]":
            logits, features = split_features(network(images))
            return class_logits(logits, images), features

        if self.promotion in ("kl", "fa"):
            ctx.note(f"promotion {self.promotion} is not compiled: it differentiates each graph twice")
        else:
            compare, teach = ctx.compile(compare), ctx.compile(teach)

        def gradients(images: "Tensor", _: "Tensor | None") -> "Mapping[str, Tensor]":
            promotes = self.promotion != "none" and self.promoted_weight > 0
            images = images.detach().requires_grad_(promotes)
            with torch.set_grad_enabled(promotes):  # else nothing of the float network is differentiated
                taught = teach(images)
            kl, fa, agreement = compare(images, *taught)
            curves = {"kl": kl, "fa": fa, "agreement": agreement}
            loss = self.original_weight * (kl + fa)
            if not promotes:
                torch.autograd.backward(loss)
                return {"loss": loss, **curves}
            harder = images.detach() + epsilon * self._differentiate(engine, images, kl, fa).sign()
            with torch.no_grad():
                taught = teach(harder)
            promoted_kl, promoted_fa, _ = compare(harder, *taught)
            promoted = self.promoted_weight * (promoted_kl + promoted_fa)
            torch.autograd.backward(promoted)
            return {"loss": loss + promoted, **curves, "promoted_kl": promoted_kl, "promoted_fa": promoted_fa}

        return gradients

    def _differentiate(self, engine: "FineTuning", images: "Tensor", kl: "Tensor", fa: "Tensor") -> "Tensor":
        """The gradient to the images of what is promoted; that of the loss is put on the parameters by the way."""
        import torch

        sought = {"kl_fa": kl + fa, "kl": kl, "fa": fa}[self.promotion]
        if not self.original_weight:
            return torch.autograd.grad(sought, images)[0]
        loss = self.original_weight * (kl + fa)
        if self.promotion == "kl_fa":
            wanted = [images, *engine.parameters]
            direction, *gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        else:
            (direction,) = torch.autograd.grad(sought, images, retain_graph=True)
            gradients = list(torch.autograd.grad(loss, engine.parameters, allow_unused=True))
        for parameter, gradient in zip(engine.parameters, gradients, strict=True):
            parameter.grad = gradient
        return direction


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide the quantizer `hast`."""
    return [HASTTraining]


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `zeroq_il` and `hast`."""
    return [ZeroQIL, HAST]
