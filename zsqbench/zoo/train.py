"""Train the embedded networks and write their weights: `python -m zsqbench.zoo.train`, up to four minutes a network.

The training makes the networks useful for benchmarks. Narrow networks leave 4-bit arithmetic little room. Pixel noise
in training teaches them to ignore noise, so that Gaussian noise, the negative control, does not excite the deeper
layers as images do. In the residual network batch-normalisation weights start far apart. So the channels of a layer
differ in range as in published networks, and one step size of 4 bits for all channels is a compromise. Depthwise layers
have this property anyway. Layer-normalisation weights of the transformer also start apart, so that its normalised
values differ in range from channel to channel, as in published transformers. The transformer also normalises noise to
the size of images, so it must learn that noise belongs to no class. Smoothed labels keep the deeper layers' statistics
typical of single images. Only this makes data from batch-normalisation statistics useful: without smoothed labels,
networks calibrated on ZeroQ's images lose 20 to 35 points more at 8 bits.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from zsqbench.zoo import digits, models
from zsqbench.zoo.digits import load_digits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierTraining:
    """How one network is trained: SGD with Nesterov momentum, or AdamW, under a one-cycle schedule."""

    noise: float
    """Largest standard deviation of the pixel noise, on 0..1. Each image draws its own."""
    weight_decay: float
    spread: float
    """Weights of normalisations start between exp(-spread) and exp(spread), evenly on a log scale, and do not decay.
    0 means as usual: they start at one and decay like other weights."""
    epochs: int
    batch: int = 64
    learning_rate: float = 0.1
    label_smoothing: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    blanks: int = 0
    """Number of pure noise images beside each batch. The network learns to find all classes equally likely there."""
    seed: int = 0


RECIPES: Mapping[str, ClassifierTraining] = {
    "resnet20": ClassifierTraining(noise=0.7, weight_decay=5e-4, spread=1.2, epochs=150),
    "mobilenetv2": ClassifierTraining(noise=0.6, weight_decay=1e-4, spread=0.0, epochs=120),
    "vit": ClassifierTraining(
        noise=0.3, weight_decay=0.05, spread=1.4, epochs=350, learning_rate=4e-3, optimizer="adamw", blanks=16
    ),
}

ROTATION, ZOOM, SHEAR, SHIFT = math.radians(20), 0.2, 0.2, 1.5
"""Largest distortion of a training image; the shift in pixels of the 8x8 original."""


def write_digits() -> None:
    """Write the embedded data from scikit-learn's copy, with the split of all results."""
    from safetensors.numpy import save_file as save_arrays
    from sklearn import datasets, model_selection

    bunch = datasets.load_digits()
    images, labels = bunch.images.astype("uint8"), bunch.target.astype("uint8")
    parts = model_selection.train_test_split(range(len(labels)), test_size=900, stratify=labels, random_state=0)
    tensors: dict[str, Any] = {}
    for name, part in zip(("train", "test"), parts, strict=True):
        tensors |= {f"{name}_images": images[sorted(part)], f"{name}_labels": labels[sorted(part)]}
    save_arrays(tensors, digits.FILE)


def train(name: str, recipe: ClassifierTraining) -> nn.Module:
    """Train an embedded network from scratch, only on the train part. Weights are seeded, the last ones count."""
    network = models.load_named(name, "none").module.train().requires_grad_()
    rng = torch.Generator().manual_seed(recipe.seed)
    if recipe.spread:
        spread_channels(network, recipe.spread, rng)
    images, labels = load_digits("train")
    images = resize(images)
    steps = len(images) // recipe.batch
    decaying = [parameter for parameter in network.parameters() if parameter.dim() > 1 or not recipe.spread]
    others = [parameter for parameter in network.parameters() if parameter.dim() == 1 and recipe.spread]
    groups: list[dict[str, Any]] = [{"params": decaying, "weight_decay": recipe.weight_decay}, {"params": others}]
    optimiser: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimiser = torch.optim.SGD(groups, recipe.learning_rate, momentum=0.9, nesterov=True)
    else:
        optimiser = torch.optim.AdamW(groups, recipe.learning_rate)
    schedule = OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * steps, pct_start=0.1)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=rng)
        for chosen in order[: steps * recipe.batch].view(steps, recipe.batch):
            shown = torch.cat((normalize(augment(images[chosen], recipe.noise, rng)), blank(recipe.blanks, rng)))
            logits, of_blanks = network(shown).split((recipe.batch, recipe.blanks))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            if recipe.blanks:
                loss = loss - recipe.blanks / recipe.batch * functional.log_softmax(of_blanks, dim=1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


def spread_channels(network: nn.Module, spread: float, rng: torch.Generator) -> None:
    """Give each channel of each normalisation a different start weight."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            uniform = torch.rand(len(module.weight), generator=rng) * 2 - 1
            module.weight.data = torch.exp(uniform * spread)


def resize(images: Tensor) -> Tensor:
    """Enlarge images to the size of the networks: [N, 1, 8, 8] to [N, 1, 16, 16]."""
    return functional.interpolate(images, size=models.DIGITS.input_size[1:], mode="bilinear")


def normalize(images: Tensor) -> Tensor:
    """Convert 0..1 to the networks' normalised space."""
    return (images - models.DIGITS.mean[0]) / models.DIGITS.std[0]


def augment(images: Tensor, noise: float, rng: torch.Generator) -> Tensor:
    """Rotate, zoom, shear and shift each image of [N, 1, H, W] in 0..1 a little, then add noise to its pixels."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=rng) * 2 - 1) * limit

    angle, zoom, shear = uniform(ROTATION), 1 + uniform(ZOOM), uniform(SHEAR)
    left, up = uniform(SHIFT * 2 / 8), uniform(SHIFT * 2 / 8)
    rows = [angle.cos() * zoom, (shear - angle.sin()) * zoom, left, angle.sin() * zoom, angle.cos() * zoom, up]
    grid = functional.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    strength = torch.rand(len(images), 1, 1, 1, generator=rng) * noise
    return moved + strength * torch.randn(images.shape, generator=rng)


def blank(count: int, rng: torch.Generator) -> Tensor:
    """Images of pure noise, in the networks' normalised space. Each draws a standard deviation of 0.5 to 1.5."""
    strength = torch.rand(count, 1, 1, 1, generator=rng) + 0.5
    return strength * torch.randn(count, *models.DIGITS.input_size, generator=rng)


def accuracy(network: nn.Module) -> float:
    """Top-1 accuracy on the held-out part, in percent."""
    images, labels = load_digits("test")
    with torch.no_grad():
        predicted = network(normalize(resize(images))).argmax(dim=1)
    return 100 * int((predicted == labels).sum()) / len(labels)


def main() -> None:
    """Write the data if it is missing, train each network, and write its weights beside this file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if not digits.FILE.is_file():
        write_digits()
    for name, recipe in RECIPES.items():
        network = train(name, recipe)
        path = models.shipped_weights(name)
        save_file(network.state_dict(), path)
        log.info("%s: %.2f %% of the held-out images, %d bytes", name, accuracy(network), path.stat().st_size)


if __name__ == "__main__":
    main()
