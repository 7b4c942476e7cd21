"""Bases of quantizers that train the student: their common options and their loop."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Auto, ByDataSet, Network, Quantizer, auto
from zsqbench.methods.base import Compiled
from zsqbench.scheme import FLOAT_BITS, Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench.methods import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning, MovingRanges, Schedule

SET_RANGE_UPDATES = 200
"""Batches of a calibration set for ranges. 800 give no more to an average that forgets a tenth with each batch."""

SMALLEST_CROP = 0.5
"""Smallest area of a crop in augmented images, as a part of the image's."""


class TrainingQuantizer(ByDataSet, Quantizer, ABC):
    """A quantizer that trains a student beside its frozen float network, by SGD with Nesterov's momentum.

    Each update rounds the latent float weights to the grid between their smallest and largest value, channel by
    channel. A scheme may demand the symmetric grid that holds both. Gradients pass rounding and clamping unchanged.
    Ranges of activations are set before training and stay.

    Under schemes that leave batch normalisation alone (`hast`), its gains and offsets learn and its statistics stay.
    Frozen ones, as in FrozenBatchNorm2d, do not learn. Under schemes that fold it (`hw`), it is folded first, and the
    resulting weight and bias learn. One weight decay and one learning rate then act on gain times weight, so the same
    options train another student. The result is the student of the last update.
    """

    compiles: ClassVar[Compiled | None] = "updates"

    epochs: Auto[int] = auto(ge=0, description="epochs of training; the result is the student after the last one")
    updates_per_epoch: int = Field(200, gt=0, description="updates of an epoch, for any number of images")
    batch_size: Auto[int] = auto(gt=0, description="images of an update")
    lr: Auto[float] = auto(ge=0, description="learning rate (SGD) at the start")
    milestones: Auto[list[int]] = auto(description="epochs after which the learning rate is cut")
    lr_factor: float = Field(0.1, gt=0, le=1, description="factor of the learning rate at each milestone")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's momentum")
    weight_decay: Auto[float] = auto(ge=0, description="weight decay of all that is trained")
    temperature: float = Field(20.0, gt=0, description="T, the temperature of logits in the distillation loss")
    alpha: Auto[float] = auto(ge=0, description="weight of the distillation loss, beside its factor T^2")
    range_momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of the moving average that gives activation ranges"
    )
    range_correction: Literal["unbiased", "compounding"] = Field(
        "unbiased", description="correction of the average's start; compounding, as released, needs 200 batches"
    )
    keep_every: int = Field(
        0,
        ge=0,
        description="keep the student after every so many epochs and after the last, for the oracle; 0 disables it",
    )

    version: ClassVar[int] = 2
    needs_classes: ClassVar[bool] = True
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")
    memory_options: ClassVar[tuple[str, ...]] = ("batch_size",)

    @property
    def keeps_epochs(self) -> bool:
        """True if students of some epochs are kept."""
        return self.keep_every > 0

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Put quantizers in place. Raises ZSQBenchError if the scheme quantizes none of the network's activations."""
        from zsqbench.quant import activation_quantizers, effective_map

        student = super().prepare(teacher, scheme)
        roles = [tensor.role for tensor in effective_map(student) if tensor.kind == "activation"]
        meant = any(scheme.bits(role) != FLOAT_BITS for role in roles)  # patterns of names may keep all float
        if scheme.activation_bits != FLOAT_BITS and not activation_quantizers(student) and not meant:
            raise ZSQBenchError(
                f"scheme {scheme.name} quantizes outputs of ReLU, and {type(teacher.module).__name__} has no ReLU: "
                "take a scheme that quantizes other activations, such as hw, or leave activations float (a32)"
            )
        return student

    def ranges(self, student: "fx.GraphModule") -> "MovingRanges":
        """Set weights to their smallest and largest value. Activations follow as a moving average over batches."""
        from zsqbench.quant import MovingRanges, span_weights

        span_weights(student)
        return MovingRanges(student, self.range_momentum, compounding=self.range_correction == "compounding")

    def train(
        self,
        student: "fx.GraphModule",
        ctx: "StepContext",
        state: Mapping[str, Any],
        draw: "Callable[[FineTuning, int], tuple[Sequence[Tensor | None], Mapping[str, Tensor]]]",
        begin: "Callable[[FineTuning], Callable[..., Mapping[str, Tensor]]]",
        *,
        follow_weights: bool = True,
        learn_steps: bool = False,
        features: Sequence[str] = (),
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Make all updates.

        `draw` is given the engine and the number of an update. It returns the tensors of the update, and scalars to
        log. `begin` is given the engine and returns the function that puts gradients on its parameters, for these
        tensors. `state`, `follow_weights`, `learn_steps`, `features` and `keep` are those of
        `zsqbench.quant.FineTuning`. Raises DivergedError where a loss or a weight is not finite.
        """
        import torch

        from zsqbench.quant import FineTuning

        if ctx.settings.compile:
            torch.compiler.reset()  # each student compiles anew; torch keeps fewer than a worker trains

        engine = FineTuning(
            student,
            ctx,
            self.schedule(),
            state,
            follow_weights=follow_weights,
            learn_steps=learn_steps,
            features=features,
            rates=self.rates,
        )
        with engine:
            adjust = self.adjustment(engine)
            engine.run(lambda update: draw(engine, update), begin(engine), adjust=adjust, keep=keep)

    def schedule(self) -> "Schedule":
        """The number and the sizes of updates."""
        from zsqbench.quant import Schedule

        return Schedule(
            epochs=self.epochs,
            updates_per_epoch=self.updates_per_epoch,
            lr=self.lr,
            milestones=self.milestones,
            factor=self.lr_factor,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            keep_every=self.keep_every,
        )

    @property
    def rates(self) -> str:
        """The options that an error suggests to lower."""
        return "'lr'"

    def work(self, images: int) -> float:
        """The work of all updates. The float network also runs on each batch."""
        return super().work(images) + self.batch_size * self.epochs * self.updates_per_epoch

    def adjustment(self, engine: "FineTuning") -> Callable[[int], None] | None:  # noqa: ARG002
        """A function that changes gradients or latent parameters between a backward pass and its update, or None.

        Updates with this function are not recorded on a GPU, so it may read its values.
        """
        return None


class SetTrainingQuantizer(TrainingQuantizer, ABC):
    """A quantizer that trains on a calibration set, cropped and flipped at random, and learns ranges from it.

    `start` names another quantizer of the suite, whose result is the start. Its network and weights are then the latent
    ones. All grids are those that it chose, and stay, so options for ranges have no effect.
    """

    augment: bool = Field(True, description="crop images to half of their area at least, resize and flip them")
    range_updates: Auto[int] = auto(gt=0, description="batches over which ranges are averaged; unset: 200")
    range_batch_size: int = Field(16, gt=0, description="images of each batch over which ranges are averaged")
    start: str | None = Field(None, description="another quantizer of the suite, from whose result training begins")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, and the number of batches for ranges."""
        return {"range_updates": SET_RANGE_UPDATES, **super().automatic(network, scheme)}

    def work(self, images: int) -> float:
        """The base's work, and forward passes of the batches over which ranges are averaged."""
        return super().work(images) + self.range_updates * self.range_batch_size

    def train_on(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
        begin: "Callable[[FineTuning], Callable[..., Mapping[str, Tensor]]]",
        features: Sequence[str] = (),
        further: "Callable[[int], Sequence[Tensor]]" = lambda _: (),
    ) -> None:
        """Set ranges and train on the set.

        `begin` is given the engine. It returns the function that puts gradients on the engine's parameters, for images
        [n, C, H, W] and labels [n], if the set has any. The function also gets the `further` tensors of the update with
        this number, such as a schedule's value. Raises ZSQBenchError for a set that is smaller than a batch.
        """
        from zsqbench.quant import take_over

        images = self.images_of(data)
        if len(images) < self.batch_size:
            raise ZSQBenchError(
                f"{len(images)} calibration images are fewer than one batch: give at least {self.batch_size}, or lower "
                f"batch_size ({self.batch_size})"
            )
        state = ctx.resume() or {}
        batches = _Batches(images.to(ctx.device), data.labels if data else None, self.augment, ctx, state)
        if not state and ctx.start is not None:
            take_over(student, ctx.start)
        elif not state:
            few = min(self.range_batch_size, len(images))
            self.set_grids(student, self.batches_for_ranges(teacher, ctx, lambda count: batches.draw(count)[0], few))

        self.train(
            student,
            ctx,
            state,
            lambda _, update: ((*batches.draw(self.batch_size), *further(update)), {}),
            begin,
            follow_weights=ctx.start is None,
            learn_steps=self.learns_steps,
            features=features,
            keep=batches.state,
        )

    @property
    def learns_steps(self) -> bool:
        """True if grids learn their step sizes."""
        return False

    def set_grids(self, student: "fx.GraphModule", batches: "Iterator[Tensor]") -> None:
        """Set all grids before training. It is not called where training starts from another quantizer."""
        ranges = self.ranges(student)
        for drawn in batches:
            ranges.update(drawn)

    def batches_for_ranges(
        self,
        teacher: "Pretrained",  # noqa: ARG002 - for those that train a generator against it
        ctx: "StepContext",  # noqa: ARG002 - likewise
        draw: "Callable[[int], Tensor]",
        size: int,
    ) -> "Iterator[Tensor]":
        """Batches [size, C, H, W] of the set from `draw`, over which activation ranges are averaged."""
        for _ in range(self.range_updates):
            yield draw(size)


class _Batches:
    """Batches of a set. The order is drawn anew when fewer images than a batch are left."""

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
        """The next `size` images, augmented, and their labels if there are any."""
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
        """The order of the remaining images."""
        return {"order": self._order}
