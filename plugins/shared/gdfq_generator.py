"""GDFQ's generator of images of classes, and Qimera's generator, which is based on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench import Pretrained, ZSQBenchError
from zsqbench.methods import data_set
from zsqbench.synthesis import (
    BNLoss,
    ConditionalGenerator,
    ConditionalTraining,
    GeneratorBatch,
    GeneratorLoss,
    initialize,
)

WIDE_EPS = 0.8
"""eps of the inner normalisations: their second argument in the release, which was not meant as eps."""

BN_WEIGHT = 0.1
"""Weight of the distance from BN statistics, beside the cross-entropy towards classes."""

GDFQ_LATENT = 100
"""Length of a latent vector of GDFQ's generator."""

Conditioning = Literal["product", "norm", "embedding"]
"""Input of the class: its embedding times the noise (GDFQ, CIFAR), gains and offsets of norms (GDFQ, ImageNet), or
its embedding plus the noise, normalised (Qimera)."""


class ConditionalImages(ConditionalGenerator):
    """GDFQ's network, in train mode, optionally with Qimera's input.

    Its weights are drawn from `rng`, on the device of `rng`. The network makes a multiple of 4 pixels a side. Images
    are a corner of this, normalised to mean 0 and deviation 1 for each channel.
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        size: tuple[int, int, int],
        conditioning: Conditioning,
        rng: torch.Generator,
        embeddings: Tensor | None = None,
    ) -> None:
        """Given `embeddings` [classes, latent] do not learn."""
        super().__init__()
        self.conditioning, self.size, self.latent = conditioning, size, latent
        channels, *sides = size
        self._start = tuple(max(2, -(-side // 4)) for side in sides)
        self._frozen = embeddings
        with torch.device("meta"):
            self.embedding = nn.Embedding(classes, latent) if conditioning != "norm" and embeddings is None else None
            self.first = nn.Linear(latent, 128 * self._start[0] * self._start[1])
            by_class = classes if conditioning == "norm" else None
            self.norms = nn.ModuleList(
                _Norm(width, eps, by_class) for width, eps in ((128, 1e-5), (128, WIDE_EPS), (64, WIDE_EPS))
            )
            self.convolutions = nn.ModuleList(nn.Conv2d(*each, 3, padding=1) for each in ((128, 128), (128, 64)))
            self.last = nn.Conv2d(64, channels, 3, padding=1)
            self.finish = nn.BatchNorm2d(channels, affine=False)
        self.to_empty(device=rng.device)
        for part in self.modules():
            initialize(part, rng)

    def forward(self, noise: Tensor, classes: Tensor, mixture: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W] of noise [N, latent] and classes [N]; or, mixed, of [N, K, latent], [N, K], [N, K]."""
        maps = self.first(self._latents(noise, classes, mixture)).view(-1, 128, *self._start)
        maps = self.norms[0](maps, classes)
        for norm, convolution in zip(self.norms[1:], self.convolutions, strict=True):
            maps = convolution(functional.interpolate(maps, scale_factor=2))
            maps = functional.leaky_relu(norm(maps, classes), 0.2)
        images: Tensor = self.finish(torch.tanh(self.last(maps)).float())
        return images[..., : self.size[1], : self.size[2]]

    def _latents(self, noise: Tensor, classes: Tensor, mixture: Tensor | None) -> Tensor:
        if self.conditioning == "norm":
            return noise
        embedded = self._frozen[classes] if self.embedding is None else self.embedding(classes)  # type: ignore[index]
        if self.conditioning == "product":
            return embedded * noise
        latents: Tensor = embedded + noise
        if mixture is None:
            return functional.layer_norm(latents, latents.shape[1:])
        # each of the K places over images and dimensions, as in the release
        deviation, mean = torch.std_mean(latents, (0, 2), correction=0, keepdim=True)
        return ((latents - mean) / (deviation.square() + 1e-5).sqrt() * mixture[..., None]).sum(1)


class _Norm(nn.Module):
    """A batch normalisation of the batch itself, with gains and offsets of the class where there are classes."""

    def __init__(self, width: int, eps: float, classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=eps, affine=classes is None)
        self.gains = nn.Parameter(torch.ones(classes, width)) if classes else None
        self.offsets = nn.Parameter(torch.zeros(classes, width)) if classes else None

    def forward(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Maps [N, C, H, W] of classes [N]."""
        maps = self.norm(maps)
        if self.gains is None or self.offsets is None:
            return maps
        return maps * self.gains[classes][..., None, None] + self.offsets[classes][..., None, None]

    def reset_parameters(self) -> None:
        """Give all classes the same gains and offsets."""
        if self.gains is not None and self.offsets is not None:
            nn.init.ones_(self.gains)
            nn.init.zeros_(self.offsets)


def gdfq_loss(batch: GeneratorBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """GDFQ's loss of a generator.

    It is the float network's cross-entropy towards the classes plus 0.1 times the distance from its statistics.
    """
    ce = functional.cross_entropy(batch.logits, batch.labels)
    return ce + BN_WEIGHT * batch.bn_gap, {"generator_ce": ce, "generator_bn": batch.bn_gap}


@dataclass(frozen=True)
class Mixture:
    """Settings of Qimera's generator for images of several classes."""

    mixed: float
    """Part of the batches whose images are of several classes, 0 to 1."""
    mixed_classes: int
    """Number of classes of an image of several classes."""
    latent: int
    """Length of an embedding that learns."""
    embeddings: Literal["random", "network"]
    """Embeddings of classes: random ones that learn, or the weights of the network's last layer."""


class QimeraTraining(ConditionalTraining):
    """Trains GDFQ's generator also on images of several classes. Their labels are mixed as the images are."""

    def __init__(
        self,
        maker: ConditionalImages,
        bn_loss: BNLoss,
        batch_size: int,
        classes: int,
        rng: torch.Generator,
        mixture: Mixture,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(maker, bn_loss, batch_size, classes, rng, loss=gdfq_loss, lr=lr)
        self._mixture = mixture

    def draw(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The base's draw; or noise [N, K, latent], classes [N, K] and their weights [N, K]; with labels."""
        device, rng = self.rng.device, self.rng
        mixed = self._mixture.mixed
        if not (mixed and torch.rand((), generator=rng, device=device).item() < mixed):
            return super().draw()
        shape = self.batch_size, self._mixture.mixed_classes
        noise = torch.randn(*shape, self.maker.latent, generator=rng, device=device)
        classes = torch.randint(self.classes, shape, generator=rng, device=device)
        mixture = torch.randn(shape, generator=rng, device=device).softmax(1)
        labels = (functional.one_hot(classes, self.classes) * mixture[..., None]).sum(1)
        return (noise, classes, mixture), labels


def gdfq_training(
    bn_loss: BNLoss,
    teacher: Pretrained,
    batch_size: int,
    rng: torch.Generator,
    lr: float = 1e-3,
    *,
    method: str,
    loss: GeneratorLoss = gdfq_loss,
) -> ConditionalTraining:
    """GDFQ's generator and its training: class times noise for small images, norms by class for large ones.

    The loss is GDFQ's, unless another one is given. Raises ZSQBenchError, in the name of a method, where the network is
    not a classifier.
    """
    classes = require_classes(teacher.classes, method)
    conditioning: Conditioning = "norm" if data_set(teacher) == "imagenet" else "product"
    maker = ConditionalImages(GDFQ_LATENT, classes, teacher.input_size, conditioning, rng)
    return ConditionalTraining(maker, bn_loss, batch_size, classes, rng, loss=loss, lr=lr)


def qimera_training(
    bn_loss: BNLoss,
    teacher: Pretrained,
    batch_size: int,
    rng: torch.Generator,
    lr: float,
    mixture: Mixture,
    *,
    method: str,
) -> ConditionalTraining:
    """Qimera's generator, which reads embeddings of classes, and its training.

    Raises ZSQBenchError, in the name of a method, where the network is not a classifier, or has no weights of classes.
    """
    classes = require_classes(teacher.classes, method)
    fixed = class_weights(teacher.module, classes) if mixture.embeddings == "network" else None
    latent = mixture.latent if fixed is None else fixed.shape[1]
    maker = ConditionalImages(latent, classes, teacher.input_size, "embedding", rng, fixed)
    return QimeraTraining(maker, bn_loss, batch_size, classes, rng, mixture, lr)


def require_classes(classes: int | None, method: str) -> int:
    """The number of classes. Raises ZSQBenchError where the network is not a classifier."""
    if classes is None:
        raise ZSQBenchError(f"{method} trains a generator of images of classes, and the network has none")
    return classes


def class_weights(module: nn.Module, classes: int) -> Tensor:
    """The weights [classes, features] of a network's last linear layer, as embeddings of classes.

    Raises ZSQBenchError where no linear layer has this number of outputs.
    """
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
    if not linear:
        raise ZSQBenchError(
            f"{type(module).__name__} has no linear layer with {classes} outputs whose weights stand for "
            "classes; take embeddings: random"
        )
    return linear[-1].weight.detach().clone()
