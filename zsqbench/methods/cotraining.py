"""Bases of quantizers that train a generator beside the student, and the generators of GDFQ and Qimera."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zsqbench.errors import DivergedError
from zsqbench.methods import data_set
from zsqbench.methods.training import RELEASED_RANGE_UPDATES, TrainingQuantizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zsqbench.methods import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning, MovingRanges
    from zsqbench.synthesis import BNLoss, ConditionalTraining

COTRAINED_PROTOCOL: Mapping[str, Any] = {
    "epochs": 396,
    "batch_size": 200,
    "lr": 1e-4,
    "milestones": [96, 196, 296],
    "weight_decay": 1e-4,
    "alpha": 1.0,
    "warmup": 800,
}
"""How GDFQ's code trains on CIFAR: 400 epochs, in the first four of which the generator is alone."""

COTRAINED_IMAGENET_PROTOCOL: Mapping[str, Any] = {
    **COTRAINED_PROTOCOL,
    "epochs": 350,
    "batch_size": 16,
    "lr": 1e-6,
    "milestones": [50, 150, 250],
    "warmup": 10_000,
}
"""The same on ImageNet, where it is alone in 50."""

MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"mixed": 0.4, "mixed_classes": 2, "latent": 64, "embeddings": "random"},
    "cifar100": {"mixed": 0.4, "mixed_classes": 10, "latent": 64, "embeddings": "network"},
    "imagenet": {"mixed": 0.4, "mixed_classes": 500, "latent": 512, "embeddings": "random"},
}
"""Qimera's images of several classes, by its scripts for CIFAR and ResNet-18."""

POINTS = 1000
"""Points of a curve of warming up that are kept."""


class CoTrainedQuantizer(TrainingQuantizer, ABC):
    """A quantizer that reads no images: a generator is trained beside the student, which learns from its images.

    Each update is one of the generator and one of the student, on the same images. The generator minimises the float
    network's cross-entropy towards the classes that it was asked for, plus 0.1 times the distance from its BN
    statistics; the student CE + alpha T^2 KL, the latter averaged over images and classes. The generator is alone at
    first (`warmup`, or `range_updates` if that is longer), and activation ranges are averages over what it makes then.
    """

    needs_images: ClassVar[bool] = False
    needs_bn: ClassVar[bool] = True

    range_updates: int = Field(
        RELEASED_RANGE_UPDATES, gt=0, description="updates of the generator, of whose images ranges are averages"
    )
    generator_lr: float = Field(
        1e-3, gt=0, description="learning rate of the generator (Adam), cut as the student's is"
    )
    warmup: int | None = Field(None, ge=0, description="updates of the generator before the student learns")
    ce_weight: float = Field(1.0, ge=0, description="weight of the student's cross-entropy")

    @abstractmethod
    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """The generator, and how it is trained. Raises ZSQBenchError for a network that it cannot be trained on."""

    def quantize(
        self,
        student: "nn.Module",
        teacher: "Pretrained",
        data: "CalibrationSet | None",  # noqa: ARG002
        ctx: "StepContext",
    ) -> None:
        """Warm up, then train both."""
        from zsqbench.synthesis import HAST, BNLoss

        state, warmup = ctx.resume() or {}, self.by_data_set("warmup", teacher)
        numbers, ranges = ctx.rng.get_state(), self.ranges(student)
        with BNLoss(teacher.module, HAST) as bn_loss:
            training = self.generator_training(teacher, ctx, bn_loss)
            if state:
                training.load(state)
                ctx.rng.set_state(numbers)  # weights were drawn that are not needed
            if "updates" not in state:
                self._warm_up(training, ranges, max(self.range_updates, warmup), ctx, state)
                state = {}

            def draw(engine: "FineTuning", update: int) -> "tuple[Sequence[Tensor], Mapping[str, Tensor]]":
                cut = self.lr_factor ** engine.schedule.passed(update)
                *made, curves = training.step(self.generator_lr * cut)
                return made, curves

            def begin(engine: "FineTuning") -> "Callable[..., Mapping[str, Tensor]]":
                return self._gradients(engine, teacher, ctx)

            self.train(student, teacher, ctx, state, draw, begin, keep=training.state)

    @property
    def rates(self) -> str:
        """The options that an error suggests to lower."""
        return "'generator_lr' or 'lr'"

    def _warm_up(
        self,
        training: "ConditionalTraining",
        ranges: "MovingRanges",
        updates: int,
        ctx: "StepContext",
        state: Mapping[str, Any],
    ) -> None:
        """Train the generator alone, and set ranges. Raises DivergedError where its loss is not finite."""
        if state:
            ranges.load(state)
        every = max(1, updates // POINTS)
        for update in range(state.get("warmed", 0), updates):
            images, *_, curves = training.step(self.generator_lr)
            if update < self.range_updates:
                ranges.update(images)
            ctx.progress(update + 1, updates)
            if (update + 1) % every == 0:
                for name, value in curves.items():
                    if not value.isfinite():
                        raise DivergedError(
                            f"{name} is {float(value)} at update {update + 1} of the generator, with a learning rate "
                            f"of {self.generator_lr:g}; try a smaller 'generator_lr'"
                        )
                    ctx.log(f"warmup/{name}", value, update + 1)
            ctx.checkpoint({"warmed": update + 1, **ranges.state(), **training.state()})

    def _gradients(
        self, engine: "FineTuning", teacher: "Pretrained", ctx: "StepContext"
    ) -> "Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]":
        """What puts gradients on parameters, for images, labels [n, classes] and the float network's logits."""
        from torch.nn import functional

        from zsqbench.quant import kl_divergence
        from zsqbench.synthesis import class_logits

        alpha = self.by_data_set("alpha", teacher)

        def compare(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            logits = class_logits(engine.network(images), images)
            kl = kl_divergence(logits, expected, self.temperature, "mean")
            agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
            return kl, functional.cross_entropy(logits, labels), agreement

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "Mapping[str, Tensor]":
            kl, ce, agreement = compiled(images, labels, expected)
            loss = alpha * kl + self.ce_weight * ce
            loss.backward()
            return {"loss": loss, "kl": kl, "ce": ce, "agreement": agreement}

        return gradients

    def gdfq(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """GDFQ's generator, and how it is trained."""
        from zsqbench.synthesis import gdfq_training, require_classes

        classes, size = require_classes(teacher.classes, self.name), self.by_data_set("batch_size", teacher)
        small = data_set(teacher) != "imagenet"
        return gdfq_training(bn_loss, classes, teacher.input_size, size, ctx.rng, self.generator_lr, small=small)

    def qimera(
        self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss", mixture: Mapping[str, Any]
    ) -> "ConditionalTraining":
        """Qimera's generator, which reads embeddings of classes, and how it is trained; `mixture` is as in MIXTURES."""
        from zsqbench.synthesis import ConditionalImages, ConditionalTraining, class_weights, require_classes

        classes, size = require_classes(teacher.classes, self.name), self.by_data_set("batch_size", teacher)
        fixed = class_weights(teacher.module, classes) if mixture["embeddings"] == "network" else None
        latent = mixture["latent"] if fixed is None else fixed.shape[1]
        maker = ConditionalImages(latent, classes, teacher.input_size, "embedding", ctx.rng, fixed)
        mixed = {name: mixture[name] for name in ("mixed", "mixed_classes")}
        return ConditionalTraining(maker, bn_loss, size, classes, ctx.rng, lr=self.generator_lr, **mixed)
