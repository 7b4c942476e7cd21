"""Train the embedded detector and write its weights: `python -m zsqbench.zoo.traindetector`, 15 minutes on one core.

Narrow layers, pixel noise and batch-normalisation weights that start far apart make it useful for benchmarks, for the
reasons in `zsqbench.zoo.train`. Rounded to nearest at academic/w4a4 (ranges by mse), the shipped detector falls from an
mAP of 91 to 85 if it is calibrated on scenes, to 84 on images made from batch-normalisation statistics, and to 57 on
Gaussian noise.
"""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from zsqbench.zoo.coco import Detections, coco_figures
from zsqbench.zoo.imagefiles import open_image
from zsqbench.zoo.instances import Instances
from zsqbench.zoo.models import SCENE_DETECTOR
from zsqbench.zoo.scenedetector import MEAN, STD, SceneDetector, detection_loss, postprocess, preprocess
from zsqbench.zoo.scenes import DIGITS, render_scene, write_scenes
from zsqbench.zoo.train import spread_channels
from zsqbench.zoo.weights import build_network

if TYPE_CHECKING:
    from zsqbench.zoo.scenes import Scene

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorTraining:
    """How the detector is trained: AdamW under a one-cycle schedule."""

    steps: int = 4000
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    noise: float = 0.3
    """Largest standard deviation of the pixel noise, on 0..1. Each image draws its own."""
    spread: float = 1.2
    """Batch-normalisation weights start between exp(-spread) and exp(spread), evenly on a log scale, without decay."""
    seed: int = 0


RECIPE = DetectorTraining()

LOGGED = 100
"""Number of steps between log lines."""


def train(recipe: DetectorTraining) -> nn.Module:
    """Train from scratch on scenes of the digits' train part. Scenes and weights are seeded. The last weights count."""
    network = build_network(SceneDetector, "none").train().requires_grad_()
    scenes, rng = np.random.Generator(np.random.PCG64(recipe.seed)), torch.Generator().manual_seed(recipe.seed)
    spread_channels(network, recipe.spread, rng)
    groups = [
        {"params": [each for each in network.parameters() if each.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [each for each in network.parameters() if each.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, recipe.learning_rate)
    schedule = OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1)
    for step in range(1, recipe.steps + 1):
        images, digits, boxes = assemble([render_scene(scenes, "train") for _ in range(recipe.batch)])
        strength = torch.rand(len(images), 1, 1, 1, generator=rng) * recipe.noise
        raw = network(normalize(images + strength * torch.randn(images.shape, generator=rng)))
        loss = detection_loss(raw, digits, boxes)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % LOGGED == 0:
            log.info("step %d of %d: loss %.3f", step, recipe.steps, loss.item())
    return network.eval()


def assemble(scenes: "list[Scene]") -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, 3, 96, 96] in 0..1, digits [N, M] and boxes [N, M, 4]. Missing digits of a scene are -1."""
    images = torch.from_numpy(np.stack([pixels for pixels, _ in scenes])).permute(0, 3, 1, 2).float() / 255
    digits, boxes = torch.full((len(scenes), DIGITS[1]), -1), torch.zeros(len(scenes), DIGITS[1], 4)
    for number, (_, found) in enumerate(scenes):
        for place, (digit, box) in enumerate(found):
            digits[number, place], boxes[number, place] = digit, torch.tensor(box)
    return images, digits, boxes


def normalize(images: Tensor) -> Tensor:
    """Convert 0..1 to the detector's normalised space."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


@torch.no_grad()
def figures(network: nn.Module, folder: Path) -> dict[str, float]:
    """COCO's figures on the evaluation scenes in a folder of `write_scenes`, in percent."""
    instances = Instances.read(folder / "annotations" / "instances_val.json")
    rows = []
    for image in instances.images:
        raw = network(preprocess(open_image(folder / "val" / image.name))[None])
        rows.append((image.id, postprocess(raw, [(image.height, image.width)])[0]))
    return coco_figures(instances.of(instances.images), Detections.of(rows))


def main() -> None:
    """Train the detector, write its weights beside this file, and log its figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    network = train(RECIPE)
    save_file(network.state_dict(), SCENE_DETECTOR)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "scenes"
        write_scenes(folder)
        log.info("%s, %d bytes", figures(network, folder), SCENE_DETECTOR.stat().st_size)


if __name__ == "__main__":
    main()
