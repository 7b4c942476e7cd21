"""ZeroQ: A Novel Zero Shot Quantization Framework (Cai et al., CVPR 2020): images from batch-norm statistics."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext


class ZeroQ(zsqbench.Generator):
    """Distilled data: pixels optimised until each image alone reproduces the statistics of every BN layer.

    Follows the released code (distill_data.py, 500 iterations of Adam), which matches mean and standard deviation of
    each image by squared distances summed over channels and layers, and the image itself to mean 0 and deviation 1;
    the paper leaves these choices open. Two things of the release that look unintended are kept, for they made the
    published tables: the images start at a standard deviation of 0.0136 instead of 1 (a division by the variance), and
    the l-th BN is compared with the output of the l-th convolution in the order of registration, not with its own
    input (option `pairing`; the same wherever each BN follows its convolution).

    Deviations: further batches where `images` exceeds `batch_size` (the release makes one), each with an optimiser and
    a schedule of its own; a layer with 1x1 maps has no deviation term (the release makes NaN of it); seeded.
    """

    name = "zeroq"
    needs_bn = True

    images: int = Field(64, gt=0, description="size of the calibration set; 64 in the released run.sh")
    batch_size: int = Field(64, gt=0, description="images optimised together; they share the learning-rate schedule")
    iterations: int = Field(500, gt=0, description="Adam steps for each batch")
    lr: float = Field(0.5, gt=0, description="learning rate of Adam")
    factor: float = Field(0.1, gt=0, lt=1, description="what the learning rate is multiplied by on a plateau")
    patience: int = Field(100, ge=0, description="iterations without a better loss that make a plateau")
    min_lr: float = Field(1e-4, ge=0, description="smallest learning rate")
    pairing: Literal["conv_output", "bn_input"] = Field(
        "conv_output",
        description="what BN statistics are compared with: outputs of convolutions, paired by order, or BN inputs",
    )

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was."""
        from dataclasses import replace

        import torch

        from zsqbench.synthesis import ZEROQ, BNLoss

        state = ctx.resume() or {}
        done = state.pop("done", torch.empty(0, *teacher.input_size)).to(ctx.device)
        with BNLoss(teacher.module, replace(ZEROQ, hook_point=self.pairing)) as bn_loss:
            measure = ctx.compile(lambda pixels: bn_loss(pixels).total)
            while len(done) < self.images:
                count = min(self.batch_size, self.images - len(done))
                pixels = self._distil((count, *teacher.input_size), measure, done, state, ctx)
                done, state = torch.cat([done, pixels]), {}
        return zsqbench.CalibrationSet(done.cpu())

    def _distil(
        self,
        shape: tuple[int, ...],
        measure: "Callable[[Tensor], Tensor]",
        done: "Tensor",
        state: dict[str, Any],
        ctx: "StepContext",
    ) -> "Tensor":
        """Optimise one batch, from its beginning or from a checkpoint's state."""
        import torch

        pixels = state["pixels"].to(ctx.device) if state else initial_pixels(shape, ctx)
        pixels.requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=self.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=self.factor, patience=self.patience, min_lr=self.min_lr
        )
        _load_state(optimizer, schedule, state)
        batch, batches = len(done) // self.batch_size, -(-self.images // self.batch_size)
        for iteration in range(state.get("iteration", 0), self.iterations):
            optimizer.zero_grad()
            loss = measure(pixels)
            loss.backward()
            optimizer.step()
            schedule.step(loss.detach())

            step = batch * self.iterations + iteration
            ctx.log("bn_loss", loss.detach(), step)
            ctx.log("lr", optimizer.param_groups[0]["lr"], step)
            ctx.progress(step + 1, batches * self.iterations)
            ctx.checkpoint({"done": done, "iteration": iteration + 1, **_state(optimizer, schedule)})
        return pixels.detach()


def initial_pixels(shape: tuple[int, ...], ctx: "StepContext") -> "Tensor":
    """Uniform in steps over +-0.0234, as in the release: 5418.75 is the variance of randint{0..254}, not its root."""
    import torch

    values = torch.randint(0, 255, shape, generator=ctx.rng, device=ctx.device).float()
    return (values - 127.5) / 5418.75


def _state(optimizer: "torch.optim.Adam", schedule: Any) -> dict[str, Any]:
    """What of optimiser and schedule changes, as tensors and numbers."""
    (pixels,) = optimizer.param_groups[0]["params"]
    moments = optimizer.state[pixels]
    return {
        "pixels": pixels.detach(),
        "exp_avg": moments["exp_avg"],
        "exp_avg_sq": moments["exp_avg_sq"],
        "lr": optimizer.param_groups[0]["lr"],
        "best": schedule.best,
        "bad": schedule.num_bad_epochs,
    }


def _load_state(optimizer: "torch.optim.Adam", schedule: Any, state: dict[str, Any]) -> None:
    """Set optimiser and schedule to what `_state` said; nothing to do for an empty state."""
    import torch

    if state:
        (pixels,) = optimizer.param_groups[0]["params"]
        moments = {name: state[name].to(pixels) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[pixels] = {"step": torch.tensor(float(state["iteration"])), **moments}
        optimizer.param_groups[0]["lr"] = state["lr"]
        schedule.best, schedule.num_bad_epochs = state["best"], state["bad"]


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `zeroq`."""
    return [ZeroQ]
