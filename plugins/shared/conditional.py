"""Generators of images of classes that are trained beside a student: GDFQ's, and Qimera's on top of it."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench import Pretrained, ZSQBenchError
from zsqbench.methods import data_set
from zsqbench.synthesis import BNLoss, class_logits, initialize, load_training, training_state

WIDE_EPS = 0.8
"""Of the inner normalisations: their second argument in the release, meant for something else."""

BN_WEIGHT = 0.1
"""Of the distance from BN statistics, against the cross-entropy towards classes."""

GDFQ_LATENT = 100
"""Numbers in a latent vector of GDFQ's generator."""

Conditioning = Literal["product", "norm", "embedding"]
"""Where the class enters: its embedding times the noise (GDFQ, CIFAR), gains and offsets of norms (GDFQ, ImageNet), or
its embedding plus the noise, normalised (Qimera)."""


class ConditionalImages(nn.Module):
    """A network that makes images of classes of latent vectors, in train mode: GDFQ's, with Qimera's input as a choice.

    Its weights are drawn from `rng`, on whose device it is. Images are the corner of what it makes, a multiple of 4
    pixels a side, normalised to mean 0 and deviation 1 for each channel.
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
        """`embeddings` [classes, latent] are those of the classes, which then do not learn."""
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
        """Let all classes be alike."""
        if self.gains is not None and self.offsets is not None:
            nn.init.ones_(self.gains)
            nn.init.zeros_(self.offsets)


class ConditionalTraining:
    """Trains a generator of images of classes against a network, and gives what it makes meanwhile.

    Each step draws noise and classes, and minimises the cross-entropy of the network towards the classes plus 0.1 times
    the distance from its BN statistics (mean and variance of the batch). With `mixed`, Qimera's: in this part of the
    steps, images are of several classes at once, and so are their labels.
    """

    def __init__(
        self,
        maker: ConditionalImages,
        bn_loss: BNLoss,
        batch_size: int,
        classes: int,
        rng: torch.Generator,
        *,
        lr: float = 1e-3,
        mixed: float = 0.0,
        mixed_classes: int = 2,
    ) -> None:
        self.maker, self._bn_loss, self._rng = maker.train(), bn_loss, rng
        self._shape, self._classes = (batch_size, maker.latent), classes
        self._mixed, self._mixed_classes = mixed, mixed_classes
        self._optimizer = torch.optim.Adam(maker.parameters(), lr=lr, betas=(0.5, 0.999), fused=True)
        self.lr = lr

    def step(self, lr: float | None = None) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """One update: images [N, C, H, W], labels [N, classes], the network's logits there, and scalars to log."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr if lr is None else lr
        noise, classes, mixture, labels = self._draw()
        with torch.enable_grad():  # whoever asks for images need not differentiate
            images = self.maker(noise, classes, mixture)
            gap = self._bn_loss(images, outputs=True)
            logits = class_logits(gap.seen.outputs, labels)
            ce = functional.cross_entropy(logits, labels)
            self._optimizer.zero_grad()
            (ce + BN_WEIGHT * gap.total).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        curves = {"generator_ce": ce.detach(), "generator_bn": gap.total.detach()}
        return images.detach(), labels, logits.detach(), curves

    def images(self, steps: int) -> Iterator[Tensor]:
        """The images of so many steps."""
        for _ in range(steps):
            yield self.step()[0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return training_state(self.maker, self._optimizer)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""
        load_training(self.maker, self._optimizer, state)

    def _draw(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Noise, classes, how these are mixed if they are, and labels."""
        device, rng = self._rng.device, self._rng
        batch, latent = self._shape
        several = self._mixed and torch.rand((), generator=rng, device=device).item() < self._mixed
        shape = (batch, self._mixed_classes) if several else (batch,)
        noise = torch.randn(*shape, latent, generator=rng, device=device)
        classes = torch.randint(self._classes, shape, generator=rng, device=device)
        if not several:
            return noise, classes, None, functional.one_hot(classes, self._classes).float()
        mixture = torch.randn(shape, generator=rng, device=device).softmax(1)
        labels = (functional.one_hot(classes, self._classes) * mixture[..., None]).sum(1)
        return noise, classes, mixture, labels


def gdfq_training(
    bn_loss: BNLoss, teacher: Pretrained, batch_size: int, rng: torch.Generator, lr: float = 1e-3, *, method: str
) -> ConditionalTraining:
    """GDFQ's generator and how it is trained: class times noise for small images, norms by class for large ones.

    Raises ZSQBenchError, in the name of a method, where the network is no classifier.
    """
    classes = require_classes(teacher.classes, method)
    conditioning: Conditioning = "norm" if data_set(teacher) == "imagenet" else "product"
    maker = ConditionalImages(GDFQ_LATENT, classes, teacher.input_size, conditioning, rng)
    return ConditionalTraining(maker, bn_loss, batch_size, classes, rng, lr=lr)


def qimera_training(
    bn_loss: BNLoss,
    teacher: Pretrained,
    batch_size: int,
    rng: torch.Generator,
    lr: float,
    mixture: Mapping[str, Any],
    *,
    method: str,
) -> ConditionalTraining:
    """Qimera's generator, which reads embeddings of classes, and how it is trained; `mixture` is as in QIMERA_MIXTURES.

    Raises ZSQBenchError, in the name of a method, where the network is no classifier, or has no weights of classes.
    """
    classes = require_classes(teacher.classes, method)
    fixed = class_weights(teacher.module, classes) if mixture["embeddings"] == "network" else None
    latent = mixture["latent"] if fixed is None else fixed.shape[1]
    maker = ConditionalImages(latent, classes, teacher.input_size, "embedding", rng, fixed)
    mixed = {name: mixture[name] for name in ("mixed", "mixed_classes")}
    return ConditionalTraining(maker, bn_loss, batch_size, classes, rng, lr=lr, **mixed)


def require_classes(classes: int | None, method: str) -> int:
    """The number of classes. Raises ZSQBenchError where the network is no classifier."""
    if classes is None:
        raise ZSQBenchError(f"{method} trains a generator of images of classes, and the network has none")
    return classes


def class_weights(module: nn.Module, classes: int) -> Tensor:
    """The weights [classes, features] of a network's last linear layer, as embeddings of classes.

    Raises ZSQBenchError where there is none with so many outputs.
    """
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
    if not linear:
        raise ZSQBenchError(
            f"{type(module).__name__} has no linear layer with {classes} outputs whose weights stand for "
            "classes; take embeddings: random"
        )
    return linear[-1].weight.detach().clone()
