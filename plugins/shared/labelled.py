"""Generators of images of random classes: IntraQ's pipeline, and HAST's, which is based on it."""

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, ByDataSet, auto

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.synthesis import BNGap, BNLoss


class LabelledGenerator(ByDataSet, zsqbench.PixelGenerator, ABC):
    """A generator of images of random classes, seen through random crops on their way to the network.

    In part of the iterations each image of a batch is separately cropped, resized and perhaps flipped. IntraQ calls
    this local object reinforcement. The result is the uncropped pixels.
    """

    needs_classes = True
    gives_labels = True
    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    crop_probability: Auto[float] = auto(
        ge=0, le=1, description="part of the iterations in which images are cropped and flipped"
    )
    crop_scale: Auto[float] = auto(gt=0, le=1, description="smallest area of a crop, as a part of the image's")

    def synthesize(
        self,
        teacher: "Pretrained",
        ctx: "StepContext",
        losses: "Callable[[Tensor, Tensor, int], tuple[Tensor, Mapping[str, Tensor]]]",
        state: Mapping[str, Any],
        *,
        stepped: "Callable[[Tensor, Tensor, int], None]" = lambda *_: None,
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> "CalibrationSet":
        """Images with their labels.

        `losses` is given images as the network sees them, their labels [n] and the number of their batch. It returns
        the loss and scalars to log. `stepped` is called with pixels, labels and step after each step.

        Raises ZSQBenchError for a network that is not a classifier, and DivergedError where a loss is not finite.
        """
        import torch

        from zsqbench.synthesis import random_crops, resized_crops

        if teacher.classes is None:
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} makes images of classes, and the network has none")
        drawn = state or self._draw(teacher.classes, ctx)
        labels: Tensor = drawn["labels"]
        of_batches = torch.split(labels.to(ctx.device), self.batch_size)
        cropped: list[bool] = drawn["cropped"].tolist()

        def of_crops(pixels: "Tensor", step: int) -> "tuple[Tensor, Mapping[str, Tensor]]":
            batch = step // self.iterations
            if cropped[step]:
                pixels = resized_crops(pixels, random_crops(pixels.shape, self.crop_scale, ctx.rng))
            return losses(pixels, of_batches[batch], batch)

        images = self.optimize(
            teacher,
            ctx,
            of_crops,
            state,
            stepped=lambda pixels, step: stepped(pixels, of_batches[step // self.iterations], step),
            keep=lambda: {"labels": labels, "cropped": drawn["cropped"], **keep()},
        )
        chosen = {name: getattr(self, name) for name in self.automatic(teacher, None)}
        return zsqbench.CalibrationSet(images, labels.cpu(), provenance={"preset": self.preset, **chosen})

    def _draw(self, classes: int, ctx: "StepContext") -> "dict[str, torch.Tensor]":
        """All random numbers that do not depend on a step, drawn at once, so that no step waits for a GPU."""
        import torch

        labels = torch.randint(classes, (self.images,), generator=ctx.rng, device=ctx.device)
        steps = len(self.batch_sizes()) * self.iterations
        return {"labels": labels, "cropped": ctx.rand(steps).cpu() < self.crop_probability}


_CIFAR = {"beta": 10.0, "crop_probability": 0.0, "crop_scale": 0.4}
_IMAGENET = {"beta": 0.1, "crop_probability": 0.5, "crop_scale": 0.4}
_RELEASED = {"cifar10": _CIFAR, "cifar100": _CIFAR, "imagenet": _IMAGENET}
_AS_INTRAQ = {"crop_probability": 0.5, "crop_scale": 0.5}


class InceptionGenerator(LabelledGenerator, ABC):
    """A generator with BN statistics and an inception loss, the pipeline of HAST's code, with its values.

    The default preset is `released`: beta 10 for CIFAR, without crops, and 0.1 for ImageNet. For ImageNet half of the
    iterations have crops of at least 40 % of the area. `paper` crops as in IntraQ, as HAST's paper says: at least 50 %,
    for all data sets. The paper takes beta from IntraQ, which has no beta, so both presets have the code's beta.
    """

    compiles = "pixels"
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
        "released": _RELEASED,
        "paper": {name: {**values, **_AS_INTRAQ} for name, values in _RELEASED.items()},
    }

    beta: Auto[float] = auto(ge=0, description="weight of the inception loss")

    def towards_classes(
        self,
        bn_loss: "BNLoss",
        ctx: "StepContext",
        gamma: float = 0.0,
        matched: "Callable[[BNGap], Tensor] | None" = None,
    ) -> "Callable[[Tensor, Tensor, int], tuple[Tensor, Mapping[str, Tensor]]]":
        """The loss for `synthesize`: BN loss plus beta times the inception loss, hard-sample-enhanced with a gamma.

        `matched` returns the BN loss from the measured gaps, in place of their total.
        """
        from zsqbench.synthesis import EASIEST, class_logits, difficulty, inception_loss

        def measure(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            gap = bn_loss(images, outputs=True)
            logits = class_logits(gap.seen.outputs, labels)
            bn = gap.total if matched is None else matched(gap)
            return bn, inception_loss(logits, labels, gamma), difficulty(logits.detach(), labels)

        compiled = ctx.compile(measure)

        def losses(images: "Tensor", labels: "Tensor", _: int) -> "tuple[Tensor, dict[str, Tensor]]":
            bn, inception, hardness = compiled(images, labels)
            saturated = (hardness <= EASIEST).sum()
            curves = {"bn_loss": bn, "inception_loss": inception, "difficulty": hardness.mean(), "saturated": saturated}
            return bn + self.beta * inception, curves

        return losses
