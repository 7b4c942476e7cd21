"""GENIE-D, the generator of GENIE: Show Me the Data for Quantization (Jeon et al., CVPR 2023)."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from zsqbench import CalibrationSet, Pretrained, StepContext


class GENIE(zsqbench.Generator):
    """Images of a small network that is trained, anew for each batch, together with its latent vectors.

    The images match mean and standard deviation of each batch at every BN layer, by squared distances averaged over
    channels and summed over layers. Each image's own mean and deviation are matched to 0 and 1, summed over its
    channels. Strided convolutions meanwhile see their input shifted at random by up to a pixel (`swing`). The class
    follows the released code (SamsungLabs/Genie, distill.py). The code swaps its arguments `lr_g` and `lr_z`: latents
    learn at 0.1 and the network at 0.01, as in the paper. The options here are named by their true meaning. Paper and
    code differ in no known option, so there is no preset. Images come from the last forward pass, before the last
    update, as in the release.

    Deviations:

    - Images that fill no batch are made in a smaller batch. The release leaves them out.
    - Images may have any size and number of channels; in the release, 224 and 3. The network makes the next multiple of
      4, at least 8. A corner is cut off before the final standardisation.
    - Maps that are one pixel high or wide do not swing in this direction.
    - With precision bf16, the network's last layers are in float32, as all statistics are.
    - The method is seeded.
    """

    name = "genie"
    compiles = "pixels"
    memory_options = ("batch_size",)
    version = 3
    needs_bn = True

    images: int = Field(1024, gt=0, description="size of the calibration set")
    batch_size: int = Field(128, gt=0, description="images made by one network; their statistics are matched together")
    iterations: int = Field(4000, gt=0, description="Adam steps for each batch")
    latent: int = Field(256, gt=0, description="length of an image's latent vector")
    latent_lr: float = Field(0.1, gt=0, description="learning rate of the latents")
    factor: float = Field(0.1, gt=0, lt=1, description="factor of the latents' learning rate on a plateau")
    patience: int = Field(100, ge=0, description="iterations without a better loss that make a plateau")
    min_lr: float = Field(1e-4, ge=0, description="smallest learning rate of the latents")
    generator_lr: float = Field(0.01, gt=0, description="learning rate of the network at the start")
    decay: float = Field(0.95, gt=0, le=1, description="factor of the network's learning rate at each decay")
    decay_interval: int = Field(100, gt=0, description="iterations between two decays")
    swing: bool = Field(True, description="shift the inputs of strided convolutions at random")

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Train network after network; an interrupted run resumes from its last checkpoint."""
        import torch

        from zsqbench import synthesis
        from zsqbench.synthesis import BNLoss, SwingConvolutions, batch_sizes, optimize

        sizes = batch_sizes(self.images, self.batch_size)
        make = ctx.compile(make_images)

        def begin(batch: int, pixels: "Tensor | None") -> _Batch:
            # a resumed batch has its numbers from the checkpoint, so it must not draw from ctx
            rng = ctx.rng if pixels is None else torch.Generator(ctx.device)
            latents = torch.randn(sizes[batch], self.latent, generator=rng, device=ctx.device)
            network = image_network(self.latent, teacher.input_size, rng)
            if ctx.settings.layout == "channels_last":
                network = network.to(memory_format=torch.channels_last)
            return _Batch(self, latents, network, lambda latents: make(network, latents, teacher.input_size))

        with ExitStack() as resources:
            bn_loss = resources.enter_context(BNLoss(teacher.module, synthesis.GENIE))

            def measure(images: "Tensor") -> "Tensor":
                return bn_loss(images).total

            compiled = ctx.compile(measure)
            if self.swing:
                swing = resources.enter_context(SwingConvolutions(teacher.module, lambda count: offsets(count, ctx)))

            def losses(images: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
                if self.swing:
                    swing.draw()
                ctx.log("generator_lr", self.generator_lr_at(step % self.iterations), step)
                loss = compiled(images)
                return loss, {"bn_loss": loss}

            order = [batch for batch in range(len(sizes)) for _ in range(self.iterations)]
            made = optimize(order, begin, losses, ctx, ctx.resume() or {})
        return zsqbench.CalibrationSet(torch.cat([images.cpu() for images in made]))

    def generator_lr_at(self, iteration: int) -> float:
        """The network's learning rate after this many steps."""
        return self.generator_lr * self.decay ** (iteration // self.decay_interval)


class _Batch:
    """Latents and the network that makes images of them, each with its optimiser and schedule."""

    def __init__(
        self, options: GENIE, latents: "Tensor", network: "nn.Sequential", make: "Callable[[Tensor], Tensor]"
    ) -> None:
        import torch

        from zsqbench.synthesis import PixelBatch, Plateau

        self.plateau = Plateau(options.latent_lr, options.factor, options.patience, options.min_lr)
        rates = "'latent_lr' or 'generator_lr'"
        self._latents = PixelBatch(latents, torch.optim.Adam, self.plateau, options.iterations, rates=rates)
        self._network, self._make = network, make
        # fused: at 224 pixels the first layer alone has 100 million weights, each of which is otherwise read ten times
        self._optimizer = torch.optim.Adam(network.parameters(), lr=options.generator_lr, fused=True)
        self._lr_at = options.generator_lr_at
        self.pixels = latents.new_empty(0)  # until images are made

    def images(self) -> "Tensor":
        """Run the network. The images of the last call are the result."""
        images = self._make(self._latents.pixels)
        self.pixels = images.detach()
        return images

    def step(self, loss: "Tensor") -> None:
        """Update latents and network. Raises ZSQBenchError where the loss of the step before is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr_at(self._latents.iteration)
        self._optimizer.zero_grad()
        self._latents.step(loss)
        self._optimizer.step()

    def settle(self) -> None:
        """Read the last loss. Raises ZSQBenchError where it is not finite."""
        self._latents.settle()

    def state(self) -> dict[str, Any]:
        """The state that `load` needs, as tensors and numbers."""
        from zsqbench.synthesis import training_state

        latents = {f"latents.{name}": value for name, value in self._latents.state().items()}
        return {"pixels": self.pixels, **latents, **training_state(self._network, self._optimizer)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned."""
        import torch

        from zsqbench.synthesis import load_training, part

        self.pixels = state["pixels"]
        latents = part(state, "latents.")
        with torch.no_grad():
            self._latents.pixels.copy_(latents["pixels"])
        self._latents.load(latents)
        load_training(self._network, self._optimizer, state)


def make_images(network: "nn.Sequential", latents: "Tensor", size: tuple[int, int, int]) -> "Tensor":
    """Images [N, *size] of latents [N, latent]."""
    maps, finish = network
    images: Tensor = finish(maps(latents)[..., : size[1], : size[2]].float())
    return images


def image_network(latent: int, size: tuple[int, int, int], rng: "Generator") -> "nn.Sequential":
    """The release's generator in two parts: one makes maps at least as large as the images, one finishes the crop.

    It is in train mode, on the device of `rng`. Its weights are drawn from `rng` with torch's default distributions.
    """
    import torch
    from torch import nn

    from zsqbench.synthesis import Doubled, initialize

    channels, *sides = size
    height, width = (max(2, -(-side // 4)) for side in sides)  # a single image of 1 x 1 would have no deviation
    with torch.device("meta"):
        maps = nn.Sequential(
            nn.Linear(latent, 128 * height * width),
            nn.Unflatten(1, (128, height, width)),
            nn.BatchNorm2d(128),
            Doubled(),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            Doubled(),
            nn.Conv2d(64, channels, 3, padding=1),
        )
        network = nn.Sequential(maps, nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False)))
    network.to_empty(device=rng.device)
    for part in network.modules():
        initialize(part, rng)
    return network


def offsets(count: int, ctx: "StepContext") -> "Tensor":
    """Crop offsets in pixels of swing convolutions: `count` pairs of x and y, each 0, 1 or 2."""
    import torch

    return torch.randint(0, 3, (count, 2), generator=ctx.rng, device=ctx.device)


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `genie`."""
    return [GENIE]
