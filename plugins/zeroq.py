"""ZeroQ: A Novel Zero Shot Quantization Framework (Cai et al., CVPR 2020): images from batch-norm statistics."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext


class ZeroQ(zsqbench.PixelGenerator):
    """Distilled data: pixels optimised until each image alone reproduces the statistics of every BN layer.

    The class follows the released code (distill_data.py, 500 iterations of Adam). The code matches mean and standard
    deviation of each image by squared distances summed over channels and layers, and the image itself to mean 0 and
    deviation 1. The paper leaves these choices open.

    Two properties of the release look unintended. They are kept, because they made the published tables. The images
    start at a standard deviation of 0.0136 instead of 1 (a division by the variance). The l-th BN is compared with the
    output of the l-th convolution in the order of registration, not with its own input (option `pairing`). Both are the
    same where each BN follows its convolution. Where they do not fit together, as in networks with convolutions that no
    BN follows, the default is the BN's own input.

    Deviations:

    - Further batches are made where `images` exceeds `batch_size`, each with its own optimiser and schedule. The
      release makes one.
    - A layer with 1x1 maps has no deviation term. The release makes NaN of it.
    - The method is seeded.
    """

    name = "zeroq"
    compiles = "pixels"
    version = 2

    images: int = Field(64, gt=0, description="size of the calibration set; 64 in the released run.sh")
    batch_size: int = Field(64, gt=0, description="images optimised together; they share the learning-rate schedule")
    iterations: int = Field(500, gt=0, description="Adam steps for each batch")
    patience: int = Field(100, ge=0, description="iterations without a better loss that make a plateau")
    pairing: Literal["conv_output", "bn_input"] | None = Field(
        None,
        description="tensors whose statistics are compared with BN statistics: outputs of convolutions, "
        "paired by order, or BN inputs; unset: outputs of convolutions where all fit, else BN "
        "inputs",
    )

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint."""
        from dataclasses import replace

        from zsqbench.synthesis import ZEROQ, BNLoss, follow_convolutions

        state, pairing = ctx.resume() or {}, self.pairing
        if pairing is None:
            pairing = "conv_output" if follow_convolutions(teacher.module) else "bn_input"
            ctx.note(f"BN statistics are compared with {pairing}")
        with BNLoss(teacher.module, replace(ZEROQ, hook_point=pairing)) as bn_loss:

            def measure(pixels: "Tensor") -> "Tensor":
                return bn_loss(pixels).total

            compiled = ctx.compile(measure)

            def losses(pixels: "Tensor", _: int) -> "tuple[Tensor, dict[str, Tensor]]":
                loss = compiled(pixels)
                return loss, {"bn_loss": loss}

            return zsqbench.CalibrationSet(self.optimize(teacher, ctx, losses, state, initial=initial_pixels))


def initial_pixels(shape: tuple[int, ...], ctx: "StepContext") -> "Tensor":
    """Uniform in steps over +-0.0234, as in the release: 5418.75 is the variance of randint{0..254}, not its root."""
    import torch

    values = torch.randint(0, 255, shape, generator=ctx.rng, device=ctx.device).float()
    return (values - 127.5) / 5418.75


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `zeroq`."""
    return [ZeroQ]
