"""The base of quantizers that train a generator beside the student."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
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
    student, on the same images. The student minimises CE + alpha T^2 KL, the latter averaged over images and classes,
    unless `student_terms` says otherwise. The generator is alone at first (`warmup`, or `range_updates` if that is
    longer), and activation ranges are averages over what it makes then.
    """

    needs_images: ClassVar[bool] = False
    needs_bn: ClassVar[bool] = True
    student_from_start: ClassVar[bool] = False
    """True if the generator's loss, which then has to ask for it, sees the student from the first update on. While the
    generator is alone, the student does not learn, and rounds on the ranges of the images so far, those at hand
    included."""

    range_updates: int = Field(800, gt=0, description="updates of the generator over whose images ranges are averaged")
    generator_lr: float = Field(
        1e-3, gt=0, description="learning rate of the generator (Adam); cut when the student's is cut"
    )
    warmup: Auto[int] = auto(ge=0, description="updates of the generator before the student learns")
    ce_weight: float = Field(1.0, ge=0, description="weight of the student's cross-entropy")

    @abstractmethod
    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """The generator, and how it is trained. Raises ZSQBenchError for a network that it cannot be trained on."""

    def student_terms(
        self, logits: "Tensor", labels: "Tensor", expected: "Tensor"
    ) -> "Mapping[str, tuple[float, Tensor]]":
        """The terms of the student's loss, by the names of curves: the weight and the value, a scalar, of each.

        `logits` are the student's, `expected` the float network's, and `labels` probabilities, all [n, classes]. It is
        compiled where the settings say so.
        """
        from torch.nn import functional

        from zsqbench.quant import kl_divergence

        kl = kl_divergence(logits, expected, self.temperature, "mean")
        return {"kl": (self.alpha, kl), "ce": (self.ce_weight, functional.cross_entropy(logits, labels))}

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",  # noqa: ARG002
        ctx: "StepContext",
    ) -> None:
        """Warm up, then train both."""
        from zsqbench.quant import pass_gradients
        from zsqbench.synthesis import HAST, BNLoss

        self, state = self.resolved(teacher, ctx.scheme), ctx.resume() or {}
        if self.student_from_start:
            pass_gradients(student)
        numbers, ranges = ctx.rng.get_state(), self.ranges(student)
        with BNLoss(teacher.module, HAST) as bn_loss:
            training = self.generator_training(teacher, ctx, bn_loss)
            if state:
                training.load(state)
                ctx.rng.set_state(numbers)  # weights were drawn that are not needed
            if "updates" not in state:
                self._warm_up(training, student, ranges, ctx, state)
                state = {}

            def draw(engine: "FineTuning", update: int) -> "tuple[Sequence[Tensor], Mapping[str, Tensor]]":
                cut = self.lr_factor ** engine.schedule.passed(update)
                *made, curves = training.step(self.generator_lr * cut, engine.network)
                return made, curves

            def begin(engine: "FineTuning") -> "Callable[..., Mapping[str, Tensor]]":
                return self._gradients(engine, ctx)

            self.train(student, ctx, state, draw, begin, keep=training.state)

    def work(self, images: int) -> float:
        """Each update is one of the generator, through the float network, too; and so is each of the warm-up.

        Where the generator's loss sees the student from the start, it sees it in all of them.
        """
        updates = self._alone + self.epochs * self.updates_per_epoch
        return super().work(images) + STEP * self.batch_size * updates * (2 if self.student_from_start else 1)

    @property
    def _alone(self) -> int:
        """Updates of the generator before the student learns."""
        return max(self.range_updates, self.warmup)

    @property
    def rates(self) -> str:
        """The options that an error suggests to lower."""
        return "'generator_lr' or 'lr'"

    def _warm_up(
        self,
        training: "ConditionalTraining",
        student: "fx.GraphModule",
        ranges: "MovingRanges",
        ctx: "StepContext",
        state: Mapping[str, Any],
    ) -> None:
        """Train the generator alone, and set ranges. Raises DivergedError where its loss is not finite."""
        if state:
            ranges.load(state)
        updates = self._alone
        every = max(1, updates // POINTS)

        def calibrated(images: "Tensor") -> Any:
            ranges.update(images)
            return student(images)

        for update in range(state.get("warmed", 0), updates):
            calibrates = update < self.range_updates
            seen = (calibrated if calibrates else student) if self.student_from_start else None
            images, *_, curves = training.step(self.generator_lr, seen)
            if calibrates and seen is None:
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

        from zsqbench.synthesis import class_logits

        def compare(
            images: "Tensor", labels: "Tensor", expected: "Tensor"
        ) -> "tuple[Mapping[str, tuple[float, Tensor]], Tensor]":
            logits = class_logits(engine.network(images), images)
            agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
            return self.student_terms(logits, labels, expected), agreement

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "Mapping[str, Tensor]":
            terms, agreement = compiled(images, labels, expected)
            loss = reduce(operator.add, (weight * term for weight, term in terms.values()))
            torch.autograd.backward(loss)
            return {"loss": loss, **{name: term for name, (_, term) in terms.items()}, "agreement": agreement}

        return gradients
