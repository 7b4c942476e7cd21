"""Bases of quantizers that train the student: the options that such methods share, and the loop they go through."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import SMALL, ByDataSet, Quantizer
from zsqbench.scheme import FLOAT_BITS, Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zsqbench.methods import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning
    from zsqbench.synthesis import BNLoss, ConditionalTraining

PROTOCOL: Mapping[str, Any] = {
    "epochs": 147,
    "batch_size": 256,
    "lr": 1e-5,
    "milestones": [16, 36, 56],
    "weight_decay": 1e-4,
    "alpha": 20.0,
}
"""How students of HAST's tables are trained on CIFAR, by the settings that come with its code."""

INTRAQ_PROTOCOL: Mapping[str, Any] = {**PROTOCOL, "lr": 1e-4}
"""The same of IntraQ's code."""

IMAGENET_PROTOCOL: Mapping[str, Any] = {**PROTOCOL, "batch_size": 16, "lr": 1e-6, "milestones": [96]}
"""Of both, on ImageNet."""

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

GDFQ_LATENT = 100
"""Numbers in a latent vector of GDFQ's generator."""

RELEASED_RANGE_UPDATES = 800
"""Batches that ranges are averaged over in the releases, while a generator learns."""

SET_RANGE_UPDATES = 200
"""Batches of a calibration set: an average that forgets a tenth with each batch knows no more after 800."""

SMALLEST_CROP = 0.5
"""Of the area of an image, in the augmentation of IntraQ and HAST."""


class TrainingQuantizer(ByDataSet, Quantizer, ABC):
    """A quantizer that trains a student beside its frozen float network, by SGD with Nesterov's momentum.

    Each update rounds the latent float weights to the grid between their smallest and largest value, channel by
    channel; gradients pass rounding and clamping unchanged. Ranges of activations are set before and stay. Under
    schemes that leave batch normalisation alone (`hast`), its gains and offsets learn and its statistics stay; under
    those that fold it (`hw`), it is folded first, and what learns is the weight and the bias that came of it: one
    weight decay and one learning rate then act on gain times weight, so that the same options train another student.
    The result is the student of the last update.
    """

    epochs: int | None = Field(None, ge=0, description="epochs of training, all of which count for the result")
    updates_per_epoch: int = Field(200, gt=0, description="updates of an epoch, however many images there are")
    batch_size: int | None = Field(None, gt=0, description="images of an update")
    lr: float | None = Field(None, ge=0, description="learning rate (SGD) at first")
    milestones: list[int] | None = Field(None, description="epochs after which the learning rate is cut")
    lr_factor: float = Field(0.1, gt=0, le=1, description="what it is multiplied by then")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's momentum")
    weight_decay: float | None = Field(None, ge=0, description="weight decay of all that is trained")
    temperature: float = Field(20.0, gt=0, description="T, by which logits are divided in the distillation loss")
    alpha: float | None = Field(None, ge=0, description="weight of the distillation loss, which has a factor T^2, too")
    range_momentum: float = Field(0.9, ge=0, lt=1, description="of that moving average")
    range_correction: Literal["unbiased", "compounding"] = Field(
        "unbiased", description="how the average is freed of its start; compounding, as released, needs 200 batches"
    )
    keep_every: int = Field(0, ge=0, description="keep the student of every so many epochs, for the oracle; 0 for none")

    @property
    def keeps_epochs(self) -> bool:
        """Whether students of some epochs are kept."""
        return self.keep_every > 0

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "nn.Module":
        """Put affine quantizers in place. Raises ZSQBenchError where no activation is one that the scheme quantizes."""
        from zsqbench.quant import activation_quantizers

        student = super().prepare(teacher, scheme)
        if scheme.activation_bits != FLOAT_BITS and not activation_quantizers(student):
            raise ZSQBenchError(
                f"scheme {scheme.name} quantizes what ReLU gives, and {type(teacher.module).__name__} has no ReLU: "
                "take a scheme that quantizes other activations, such as hw, or leave activations float (a32)"
            )
        return student

    def learn_ranges(self, student: "nn.Module", batches: "Iterable[Tensor]") -> None:
        """Set weights to their smallest and largest value, and activations to a moving average over batches."""
        from zsqbench.quant import calibrate_activations_moving, calibrate_weights

        calibrate_weights(student, "minmax")
        compounding = self.range_correction == "compounding"
        calibrate_activations_moving(student, batches, self.range_momentum, compounding=compounding)

    def train(
        self,
        student: "nn.Module",
        teacher: "Pretrained",
        ctx: "StepContext",
        state: Mapping[str, Any],
        begin: "Callable[[FineTuning], Callable[[int], Mapping[str, Tensor]]]",
        *,
        follow_weights: bool = True,
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Make all updates. `begin` is given the engine and returns what puts gradients on its parameters.

        `state` and `keep` are those of `zsqbench.quant.FineTuning`. Raises DivergedError where the loss is not finite.
        """
        from zsqbench.quant import FineTuning, Schedule

        schedule = Schedule(
            epochs=self.published("epochs", teacher),
            updates_per_epoch=self.updates_per_epoch,
            lr=self.published("lr", teacher),
            milestones=self.published("milestones", teacher),
            factor=self.lr_factor,
            momentum=self.momentum,
            weight_decay=self.published("weight_decay", teacher),
            keep_every=self.keep_every,
        )
        with FineTuning(student, ctx, schedule, state, follow_weights=follow_weights) as engine:
            engine.run(begin(engine), adjust=lambda update: self.adjust(engine, teacher, update), keep=keep)

    def adjust(self, engine: "FineTuning", teacher: "Pretrained", update: int) -> None:
        """Change gradients or latent parameters between the backward pass and the update; by default, nothing."""


class SetTrainingQuantizer(TrainingQuantizer, ABC):
    """One that trains on a calibration set, cropped and flipped at random, and learns activation ranges from the same.

    `start` names another quantizer of the suite, from whose result it goes on: its weights are the latent ones then,
    and all grids are those that it chose, and stay.
    """

    augment: bool = Field(True, description="crop images to half of their area at least, resize and flip them")
    range_source: Literal["calibration", "generator"] = Field(
        "calibration", description="whose images ranges are of: the set's, or a generator's that is trained meanwhile"
    )
    range_updates: int | None = Field(
        None,
        gt=0,
        description="batches that ranges are averaged over; none for 200, and 800 of a generator, as released",
    )
    range_batch_size: int = Field(16, gt=0, description="images of each batch that ranges are averaged over")
    start: str | None = Field(None, description="another quantizer of the suite, whose result is where training begins")

    def train_on(
        self,
        student: "nn.Module",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
        begin: "Callable[[FineTuning], Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]]",
    ) -> None:
        """Set ranges and train on the set.

        `begin` is given the engine and returns what puts gradients on its parameters, for images [n, C, H, W] and
        labels [n], if the set has any. Raises ZSQBenchError for a set that is smaller than a batch.
        """
        from zsqbench.quant import take_over

        images = self.images_of(data)
        size = self.published("batch_size", teacher)
        if len(images) < size:
            raise ZSQBenchError(
                f"{len(images)} calibration images are fewer than one batch: give at least {size}, or lower batch_size "
                f"({size})"
            )
        state = ctx.resume() or {}
        batches = _Batches(images.to(ctx.device), data.labels if data else None, self.augment, ctx, state)
        if not state and ctx.start is not None:
            take_over(student, ctx.start)
        elif not state:
            self.learn_ranges(student, self._batches_for_ranges(teacher, batches, ctx))

        def with_batches(engine: "FineTuning") -> "Callable[[int], Mapping[str, Tensor]]":
            gradients = begin(engine)
            return lambda _: gradients(*batches.draw(size))

        follow = ctx.start is None
        self.train(student, teacher, ctx, state, with_batches, follow_weights=follow, keep=batches.state)

    def _batches_for_ranges(self, teacher: "Pretrained", batches: "_Batches", ctx: "StepContext") -> "Iterator[Tensor]":
        from zsqbench.synthesis import HAST, BNLoss

        size = min(self.range_batch_size, len(batches.images))
        if self.range_source == "calibration":
            for _ in range(self.range_updates or SET_RANGE_UPDATES):
                yield batches.draw(size)[0]
            return
        with BNLoss(teacher.module, HAST) as bn_loss:
            maker = gdfq_training(self.name, teacher, ctx, bn_loss, size)
            yield from maker.images(self.range_updates or RELEASED_RANGE_UPDATES)


class CoTrainedQuantizer(TrainingQuantizer, ABC):
    """A quantizer that reads no images: a generator is trained beside the student, which learns from what it makes.

    Each update is one of the generator and one of the student, on the same images. The generator minimises the float
    network's cross-entropy towards the classes that it was asked for, plus 0.1 times the distance from its BN
    statistics; the student CE + alpha T^2 KL, the latter averaged over images and classes. The generator is alone at
    first (`warmup`), and activation ranges are learned from the first of what it makes meanwhile.
    """

    data_free: ClassVar[bool] = True
    needs_bn: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

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
        from zsqbench.quant import student_state
        from zsqbench.synthesis import HAST, BNLoss

        state, warmup = ctx.resume() or {}, self.published("warmup", teacher)
        numbers = ctx.rng.get_state()
        with BNLoss(teacher.module, HAST) as bn_loss:
            maker = self.generator_training(teacher, ctx, bn_loss)
            if state:
                maker.load(state)
                ctx.rng.set_state(numbers)  # weights were drawn that are not needed
            else:
                self.learn_ranges(student, maker.images(self.range_updates))
            for warmed in range(state.get("warmed", self.range_updates), warmup):
                *_, curves = maker.step(self.generator_lr)
                for name, value in curves.items():
                    ctx.log(f"warmup/{name}", value, warmed + 1)
                ctx.progress(warmed + 1, warmup)
                ctx.checkpoint({"warmed": warmed + 1, **student_state(student), **maker.state()})

            def with_generator(engine: "FineTuning") -> "Callable[[int], Mapping[str, Tensor]]":
                gradients = self._gradients(engine, teacher, ctx)

                def both(update: int) -> "Mapping[str, Tensor]":
                    cut = self.lr_factor ** engine.schedule.passed(update)
                    images, labels, logits, curves = maker.step(self.generator_lr * cut)
                    return {**gradients(images, labels, logits), **curves}

                return both

            def keep() -> dict[str, Any]:
                return {"warmed": warmup, **maker.state()}

            self.train(student, teacher, ctx, state, with_generator, keep=keep)

    def _gradients(
        self, engine: "FineTuning", teacher: "Pretrained", ctx: "StepContext"
    ) -> "Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]":
        """What puts gradients on parameters, for images, labels [n, classes] and the float network's logits."""
        from torch.nn import functional

        from zsqbench.quant import kl_divergence
        from zsqbench.synthesis import class_logits

        alpha = self.published("alpha", teacher)

        def compare(images: "Tensor", labels: "Tensor", expected: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            logits = class_logits(engine.student(images), images)
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


def gdfq_training(
    method: str, teacher: "Pretrained", ctx: "StepContext", bn_loss: "BNLoss", batch_size: int, lr: float = 1e-3
) -> "ConditionalTraining":
    """GDFQ's generator and how it is trained: class times noise for small images, norms by class for large ones."""
    from zsqbench.synthesis import ConditionalImages, ConditionalTraining, require_classes

    classes = require_classes(teacher.classes, method)
    conditioning: Literal["product", "norm"] = "product" if max(teacher.input_size[1:]) < SMALL else "norm"
    maker = ConditionalImages(GDFQ_LATENT, classes, teacher.input_size, conditioning, ctx.rng)
    return ConditionalTraining(maker, bn_loss, batch_size, classes, ctx.rng, lr=lr)


def qimera_training(
    method: str,
    teacher: "Pretrained",
    ctx: "StepContext",
    bn_loss: "BNLoss",
    batch_size: int,
    lr: float,
    *,
    mixed: float,
    mixed_classes: int,
    latent: int,
    embeddings: Literal["random", "network"],
) -> "ConditionalTraining":
    """Qimera's generator, which reads embeddings of classes, and how it is trained."""
    from zsqbench.synthesis import ConditionalImages, ConditionalTraining, class_weights, require_classes

    classes = require_classes(teacher.classes, method)
    fixed = class_weights(teacher.module, classes) if embeddings == "network" else None
    latent = latent if fixed is None else fixed.shape[1]
    maker = ConditionalImages(latent, classes, teacher.input_size, "embedding", ctx.rng, fixed)
    return ConditionalTraining(
        maker, bn_loss, batch_size, classes, ctx.rng, lr=lr, mixed=mixed, mixed_classes=mixed_classes
    )


class _Batches:
    """Batches of a set, in an order that is drawn anew when fewer images than a batch are left of it."""

    def __init__(
        self,
        images: "Tensor",
        labels: "Tensor | None",
        augment: bool,
        ctx: "StepContext",
        state: Mapping[str, Any],
    ) -> None:
        import torch

        self.images = images
        self._labels = None if labels is None else labels.to(images.device)
        self._augment, self._ctx = augment, ctx
        self._order: torch.Tensor = state.get("order", torch.empty(0, dtype=torch.int64)).to(images.device)

    def draw(self, size: int) -> "tuple[Tensor, Tensor | None]":
        """The next so many images, augmented, and their labels if there are any."""
        import torch

        from zsqbench.synthesis import random_crops, resized_crops

        if len(self._order) < size:
            self._order = torch.randperm(len(self.images), generator=self._ctx.rng, device=self.images.device)
        index, self._order = self._order[:size], self._order[size:]
        images = self.images[index]
        if self._augment:
            images = resized_crops(images, random_crops(images.shape, SMALLEST_CROP, self._ctx.rng))
        return images, None if self._labels is None else self._labels[index]

    def state(self) -> dict[str, Any]:
        """The order in which what is left comes."""
        return {"order": self._order}
