"""Training of networks that make images of classes, with your own loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench.synthesis.bn_loss import BNLoss
from zsqbench.synthesis.generator_networks import load_training, training_state
from zsqbench.synthesis.outputs import class_logits


class ConditionalGenerator(nn.Module, ABC):
    """A network that makes images of classes from latent vectors."""

    latent: int
    """Length of a latent vector."""

    @abstractmethod
    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Images [N, C, H, W] of noise [N, latent] and classes [N]."""


@dataclass(frozen=True)
class GeneratorBatch:
    """A batch of images for a generator's loss. Everything is differentiable to the images."""

    labels: Tensor
    """The wanted classes, as probabilities [N, classes]."""
    logits: Tensor
    """Logits of the float network for the images, [N, classes]."""
    bn_gap: Tensor
    """Distance of the batch from the network's BN statistics; a scalar."""
    student_logits: Callable[[], Tensor] | None
    """A function that computes the student's logits for the images, [N, classes]. None where there is no student, as in
    the warm-up."""


GeneratorLoss = Callable[[GeneratorBatch], tuple[Tensor, Mapping[str, Tensor]]]
"""The loss of a generator: the minimised scalar, and scalars to log."""


class ConditionalTraining:
    """Trains a generator of images of classes against a network, and returns its images.

    Each step draws noise and classes, and minimises the loss by Adam.
    """

    def __init__(
        self,
        maker: ConditionalGenerator,
        bn_loss: BNLoss,
        batch_size: int,
        classes: int,
        rng: torch.Generator,
        *,
        loss: GeneratorLoss,
        lr: float = 1e-3,
    ) -> None:
        self.maker, self._bn_loss, self._loss = maker.train(), bn_loss, loss
        self.batch_size, self.classes, self.rng, self.lr = batch_size, classes, rng, lr
        self._optimizer = torch.optim.Adam(maker.parameters(), lr=lr, betas=(0.5, 0.999), fused=True)

    def draw(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw the generator's inputs, here noise [N, latent] and classes [N]; and labels [N, classes]."""
        noise = torch.randn(self.batch_size, self.maker.latent, generator=self.rng, device=self.rng.device)
        classes = torch.randint(self.classes, (self.batch_size,), generator=self.rng, device=self.rng.device)
        return (noise, classes), functional.one_hot(classes, self.classes).float()

    def step(
        self, lr: float | None = None, student: Callable[[Tensor], Any] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """One update: images [N, C, H, W], labels [N, classes], the network's logits there, and scalars to log.

        `student` is a function from images to logits, for losses that compare it with the network, as in AdaSG and
        AdaDFQ. It runs only if the loss asks for it, and its parameters get no gradient.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr if lr is None else lr
        read, labels = self.draw()
        with torch.enable_grad():  # callers may have disabled gradients
            images = self.maker(*read)
            gap = self._bn_loss(images, outputs=True)
            logits = class_logits(gap.seen.outputs, labels)
            ask = None if student is None else lambda: class_logits(student(images), labels)
            loss, curves = self._loss(GeneratorBatch(labels, logits, gap.total, ask))
            self._optimizer.zero_grad()
            torch.autograd.backward(loss, inputs=list(self.maker.parameters()))
        self._optimizer.step()
        return images.detach(), labels, logits.detach(), {name: value.detach() for name, value in curves.items()}

    def images(self, steps: int) -> Iterator[Tensor]:
        """The images of this number of steps."""
        for _ in range(steps):
            yield self.step()[0]

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        return training_state(self.maker, self._optimizer)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned."""
        load_training(self.maker, self._optimizer, state)
