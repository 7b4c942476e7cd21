"""The base of quantizers that train a generator beside the student."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zsqbench.errors import DivergedError
from zsqbench.methods import Auto, auto
from zsqbench.methods.training import TrainingQuantizer
from zsqbench.methods.work import STEP

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench.methods import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning, MovingRanges
    from zsqbench.synthesis import BNLoss, ConditionalTraining

POINTS = 1000
"""Points of a curve of warming up that are kept."""


class CoTrainedQuantizer(TrainingQuantizer, ABC):
    """A quantizer that reads no images: a generator is trained beside the student, which learns from its images.

    Each update is one of the generator, whose loss may look at the float network and at the student, and one of the
    student, on the same images. The student minimises CE + alpha T^2 KL, the latter averaged over images and classes.
    The generator is alone at first (`warmup`, or `range_updates` if that is longer), and activation ranges are averages
    over what it makes then.
    """

    needs_images: ClassVar[bool] = False
    needs_bn: ClassVar[bool] = True

    range_updates: int = Field(800, gt=0, description="updates of the generator, of whose images ranges are averages")
    generator_lr: float = Field(
        1e-3, gt=0, description="learning rate of the generator (Adam), cut as the student's is"
    )
    warmup: Auto[int] = auto(ge=0, description="updates of the generator before the student learns")
    ce_weight: float = Field(1.0, ge=0, description="weight of the student's cross-entropy")

    @abstractmethod
    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """The generator, and how it is trained. Raises ZSQBenchError for a network that it cannot be trained on."""

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",  # noqa: ARG002
        ctx: "StepContext",
    ) -> None:
        """Warm up, then train both."""
        from zsqbench.synthesis import HAST, BNLoss

        self, state = self.resolved(teacher, ctx.scheme), ctx.resume() or {}
        numbers, ranges = ctx.rng.get_state(), self.ranges(student)
        with BNLoss(teacher.module, HAST) as bn_loss:
            training = self.generator_training(teacher, ctx, bn_loss)
            if state:
                training.load(state)
                ctx.rng.set_state(numbers)  # weights were drawn that are not needed
            if "updates" not in state:
                self._warm_up(training, ranges, max(self.range_updates, self.warmup), ctx, state)
                state = {}

            def draw(engine: "FineTuning", update: int) -> "tuple[Sequence[Tensor], Mapping[str, Tensor]]":
                cut = self.lr_factor ** engine.schedule.passed(update)
                *made, curves = training.step(self.generator_lr * cut, engine.network)
                return made, curves

            def begin(engine: "FineTuning") -> "Callable[..., Mapping[str, Tensor]]":
                return self._gradients(engine, ctx)

            self.train(student, ctx, state, draw, begin, keep=training.state)

    def work(self, images: int) -> float:
        """Each update is one of the generator, through the float network, too; and so is each of the warm-up."""
        alone = max(self.range_updates, self.warmup)
        return super().work(images) + STEP * self.batch_size * (alone + self.epochs * self.updates_per_epoch)

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
        self, engine: "FineTuning", ctx: "StepContext"
    ) -> "Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]":
        """What puts gradients on parameters, for images, labels [n, classes] and the float network's logits."""
        import torch
        from torch.nn import functional

        from zsqbench.quant import kl_divergence
        from zsqbench.synthesis import class_logits

        def compare(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            logits = class_logits(engine.network(images), images)
            kl = kl_divergence(logits, expected, self.temperature, "mean")
            agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
            return kl, functional.cross_entropy(logits, labels), agreement

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "Mapping[str, Tensor]":
            kl, ce, agreement = compiled(images, labels, expected)
            loss = self.alpha * kl + self.ce_weight * ce
            torch.autograd.backward(loss)
            return {"loss": loss, "kl": kl, "ce": ce, "agreement": agreement}

        return gradients
