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
"""Points that are kept of a curve of the warm-up."""


class CoTrainedQuantizer(TrainingQuantizer, ABC):
    """A quantizer that reads no images: a generator is trained beside the student, which learns from its images.

    Each update trains first the generator, then the student, on the same images. The generator's loss may use the float
    network and the student. The student minimises CE + alpha T^2 KL unless `student_terms` says otherwise; KL is
    averaged over images and classes. At first only the generator learns, for `warmup` updates, or `range_updates` if
    that is more. Activation ranges are averages over the images of these updates.
    """

    needs_images: ClassVar[bool] = False
    needs_bn: ClassVar[bool] = True
    student_from_start: ClassVar[bool] = False
    """True if the generator's loss sees the student from the first update on; it must then ask for the student. During
    the warm-up the student does not learn. It rounds on the ranges of all images so far, including the current ones."""

    range_updates: int = Field(800, gt=0, description="updates of the generator over whose images ranges are averaged")
    generator_lr: float = Field(
        1e-3, gt=0, description="learning rate of the generator (Adam); cut when the student's is cut"
    )
    warmup: Auto[int] = auto(ge=0, description="updates of the generator before the student learns")
    ce_weight: float = Field(1.0, ge=0, description="weight of the student's cross-entropy")

    @abstractmethod
    def generator_training(self, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss") -> "ConditionalTraining":
        """The generator and its training. Raises ZSQBenchError for a network on which it cannot be trained."""

    def student_terms(
        self, logits: "Tensor", labels: "Tensor", expected: "Tensor"
    ) -> "Mapping[str, tuple[float, Tensor]]":
        """The terms of the student's loss by the names of curves: the weight and the value, a scalar, of each.

        `logits` are the student's, `expected` the float network's, and `labels` probabilities, all [n, classes]. The
        function is compiled where the settings say so.
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
                ctx.rng.set_state(numbers)  # the weights that were drawn are not needed
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
        """The work of all updates and of the warm-up. An update of the generator also runs the float network.

        Where the generator's loss sees the student from the start, each of its updates also runs the student.
        """
        updates = self._alone + self.epochs * self.updates_per_epoch
        return super().work(images) + STEP * self.batch_size * updates * (2 if self.student_from_start else 1)

    @property
    def _alone(self) -> int:
        """Number of generator updates before the student learns."""
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
        """A function that puts gradients on parameters, for images, labels [n, classes] and float logits."""
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
