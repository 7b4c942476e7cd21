"""HAST's training on images and on harder versions of them, with aligned features; other methods extend it."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from zsqbench_plugins.shared.generator_ranges import GeneratorRangesQuantizer

import zsqbench
from zsqbench.methods import Auto, auto

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning


class HardSampleQuantizer(GeneratorRangesQuantizer, ABC):
    """HAST's training. `HardSampleUpdate` describes an update, and `hast` names the source.

    A method that extends it overrides `further_features` and `update`.
    """

    preset: Literal["paper", "released"] = Field("paper", description="values of the options that are not given")
    promotion: Literal["kl_fa", "kl", "fa", "none"] = Field(
        "kl_fa", description="loss that harder images increase: distillation, misaligned features, or both"
    )
    epsilon: Auto[float] = auto(ge=0, description="size of a pixel's move towards a harder image, in normalised pixels")
    alignment: Literal["attention", "paper_attention", "direct", "none"] = Field(
        "attention",
        description="features that are aligned: normalised attention, as released; the paper's attention; "
        "the maps themselves",
    )
    alignment_weight: Auto[float] = auto(ge=0, description="weight of the alignment (lambda)")
    original_weight: float = Field(1.0, ge=0, description="weight of the losses on the images as they are")
    promoted_weight: float = Field(1.0, ge=0, description="weight of the losses on the harder images")

    @model_validator(mode="after")
    def _has_what_it_promotes(self) -> "HardSampleQuantizer":
        if self.promotion == "fa" and self.alignment == "none":
            raise ValueError("promotion: fa needs aligned features, and alignment: none aligns none")
        if not self.original_weight and (not self.promoted_weight or self.promotion == "none"):
            raise ValueError("original_weight is 0, and no harder image is trained on")
        return self

    @property
    def promotes(self) -> bool:
        """True if images are made harder."""
        return self.promotion != "none" and self.promoted_weight > 0

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set ranges, then train."""
        import copy

        from zsqbench.quant import block_outputs, with_features

        self = self.resolved(teacher, ctx.scheme)
        network = copy.deepcopy(student)  # quantizers round nothing before they are calibrated
        aligned = block_outputs(network) if self.alignment != "none" else []
        if self.alignment != "none" and not aligned:
            raise zsqbench.ZSQBenchError(
                f"{type(teacher.module).__name__} has no convolution to align: take alignment: none"
            )
        ctx.note(f"{len(aligned)} layers are aligned: {', '.join(str(node.target) for node in aligned)}")
        nodes = [*aligned, *self.further_features(network, ctx)]
        taught = with_features(network, nodes)
        self.train_on(
            student,
            teacher,
            data,
            ctx,
            lambda engine: self.update(engine, taught, ctx, len(aligned)),
            features=[node.name for node in nodes],
        )

    def further_features(self, network: "fx.GraphModule", ctx: "StepContext") -> "Sequence[fx.Node]":  # noqa: ARG002
        """Nodes of the prepared network whose values an update needs, besides the aligned ones."""
        return ()

    def update(
        self, engine: "FineTuning", network: "fx.GraphModule", ctx: "StepContext", aligned: int
    ) -> "Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]":
        """A function that puts the gradients of an update on the engine's parameters.

        The float network and `engine.network` also return features. The first `aligned` of them are aligned.
        """
        return HardSampleUpdate(self, engine, network, ctx, aligned)


class HardSampleUpdate:
    """One update: losses on images, the direction in which they become harder, and losses on these harder images.

    A method that extends it overrides parts that HAST leaves empty. `seen` changes images. `judged` are tensors that
    are computed once for both versions. `further` are losses on both versions. `beside` is a loss for which no image is
    made harder.
    """

    def __init__(
        self,
        method: HardSampleQuantizer,
        engine: "FineTuning",
        network: "fx.GraphModule",
        ctx: "StepContext",
        aligned: int,
    ) -> None:
        self.method, self.engine, self.network, self.ctx, self.aligned = method, engine, network, ctx, aligned
        self._compare, self._teach = self.compare, self.teach
        if method.promotion in ("kl", "fa"):
            ctx.note(f"promotion {method.promotion} is not compiled: it differentiates each graph twice")
        else:
            twice = self.twice and method.promotes
            self._compare, self._teach = ctx.compile(self.compare, twice=twice), ctx.compile(self.teach)

    @property
    def twice(self) -> bool:
        """True if the student is differentiated twice, because one loss does not make images harder."""
        return False

    def seen(self, images: "Tensor") -> "Tensor":
        """Images [N, C, H, W] as both networks see them."""
        return images

    def judged(self, expected: "Tensor", labels: "Tensor | None") -> "tuple[Tensor, ...]":  # noqa: ARG002
        """Tensors that `further` reads, from the float network's logits [N, classes] for the original images."""
        return ()

    def further(self, logits: "Tensor", *judged: "Tensor") -> "dict[str, Tensor]":  # noqa: ARG002
        """Weighted losses of the student's logits [N, classes] by name, which are added to distillation."""
        return {}

    def beside(
        self,
        images: "Tensor",  # noqa: ARG002 - for overrides, as the others
        theirs: "tuple[Tensor, ...]",  # noqa: ARG002
        ours: "tuple[Tensor, ...]",  # noqa: ARG002
    ) -> "dict[str, Tensor]":
        """A weighted loss by name, of the further features of float network and student for the original images."""
        return {}

    def aligns(self, *, harder: bool) -> bool:  # noqa: ARG002
        """True if features of harder images (`harder`), or of the original ones, are aligned."""
        return self.method.alignment != "none"

    def teach(self, images: "Tensor") -> "tuple[Tensor, tuple[Tensor, ...]]":
        """Logits and features of the float network."""
        from zsqbench.quant import split_features
        from zsqbench.synthesis import class_logits

        logits, features = split_features(self.network(images))
        return class_logits(logits, images), features

    def compare(
        self,
        images: "Tensor",
        expected: "Tensor",
        features: "tuple[Tensor, ...]",
        judged: "tuple[Tensor, ...]" = (),
        *,
        harder: bool = False,
    ) -> "tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]":
        """Weighted losses by name, the share of equal predictions, and the further features of the student."""
        from zsqbench.quant import alignment_loss, kl_divergence, split_features
        from zsqbench.synthesis import class_logits

        method = self.method
        logits, found = split_features(self.engine.network(images))
        logits = class_logits(logits, images)
        kl = method.alpha * kl_divergence(logits, expected, method.temperature)
        agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
        fa = kl.new_zeros(())
        if method.alignment != "none" and self.aligns(harder=harder):
            ours, theirs = found[: self.aligned], features[: self.aligned]
            fa = method.alignment_weight * alignment_loss(ours, theirs, method.alignment)
        return {"kl": kl, "fa": fa, **self.further(logits, *judged)}, agreement, found[self.aligned :]

    def __call__(self, images: "Tensor", labels: "Tensor | None") -> "Mapping[str, Tensor]":
        """Put the gradients of all losses on the parameters of the engine. Returns scalars for the log."""
        import torch

        method = self.method
        images = self.seen(images).detach().requires_grad_(method.promotes)
        with torch.set_grad_enabled(method.promotes):  # otherwise the float network is not differentiated
            expected, features = self._teach(images)
        judged = self.judged(expected.detach(), labels)
        losses, agreement, further = self._compare(images, expected, features, judged)
        beside = self.beside(images, features[self.aligned :], further)
        curves = {**losses, **beside, "agreement": agreement}
        loss = _sum(method.original_weight * _sum(*losses.values()), *beside.values())
        if not method.promotes:
            torch.autograd.backward(loss)
            return {"loss": loss, **curves}
        harder = images.detach() + method.epsilon * self._differentiate(images, losses, beside).sign()
        with torch.no_grad():
            expected, features = self._teach(harder)
        losses, _, _ = self._compare(harder, expected, features, judged, harder=True)
        promoted = method.promoted_weight * _sum(*losses.values())
        torch.autograd.backward(promoted)
        return {"loss": loss + promoted, **curves, **{f"promoted_{name}": each for name, each in losses.items()}}

    def _differentiate(
        self, images: "Tensor", losses: "Mapping[str, Tensor]", beside: "Mapping[str, Tensor]"
    ) -> "Tensor":
        """The gradient of the promoted loss to the images. The loss's gradient is also put on the parameters."""
        import torch

        method, parameters = self.method, self.engine.parameters
        distilled = [each for name, each in losses.items() if name != "fa"]
        promoted = {"kl_fa": [*losses.values()], "kl": distilled, "fa": [losses["fa"]]}[method.promotion]
        sought = _sum(*promoted)
        kept = [method.original_weight * _sum(*losses.values())] if method.original_weight else []
        if not kept and not beside:
            return torch.autograd.grad(sought, images)[0]
        loss = _sum(*kept, *beside.values())
        if method.promotion == "kl_fa" and not beside:
            direction, *gradients = torch.autograd.grad(loss, [images, *parameters], allow_unused=True)
        else:
            (direction,) = torch.autograd.grad(sought, images, retain_graph=True)
            gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return direction


def _sum(first: "Tensor", *others: "Tensor") -> "Tensor":
    return sum(others, first)
