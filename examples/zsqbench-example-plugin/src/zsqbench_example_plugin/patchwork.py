"""patchwork: images of classes, into each of which a window of another image is pasted on the way."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Network, Pretrained, Scheme, StepContext


class Patchwork(zsqbench.PixelGenerator):
    """Images that match the batch statistics of a network, and that show two classes each.

    An example, and no method of a paper. Each image begins as normal noise with a class that is drawn. Adam lowers the
    BN loss of the batch (means and variances) plus `beta` times the cross-entropy towards the labels. After half of the
    iterations a square window of the image before it in the batch is pasted into each image, and labels are mixed by
    area, as CutMix does with real images (Yun et al., ICCV 2019). The other half matches what was pasted to its new
    surroundings. Unlike in CutMix, the size of windows is fixed. In a batch of one image nothing changes.
    """

    name = "patchwork"
    needs_classes = True
    gives_labels = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"iterations": 100}, "thorough": {"iterations": 500}}

    preset: Literal["quick", "thorough"] = Field("quick", description="values of the options that are not given")
    images: int = Field(64, gt=0, description="size of the calibration set")
    batch_size: int = Field(32, gt=0, description="images optimised together; windows come from the same batch")
    iterations: zsqbench.Auto[int] = zsqbench.auto(gt=0, description="Adam steps for each batch")
    lr: float = Field(0.1, gt=0, lt=1e30, description="learning rate of Adam")
    beta: float = Field(0.1, ge=0, description="weight of the cross-entropy towards labels")
    side: zsqbench.Auto[int] = zsqbench.auto(
        gt=0, description="side of a window in pixels; unset: half of the image's shorter side"
    )

    def automatic(self, network: "Network", scheme: "Scheme | None") -> Mapping[str, Any]:
        """The preset's values, and a side that depends on the network; known before anything runs, without torch."""
        return {**super().automatic(network, scheme), "side": max(1, min(network.input_size[1:]) // 2)}

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run goes on where its last checkpoint was.

        Raises ZSQBenchError for windows that are larger than images.
        """
        import torch
        from torch.nn import functional

        from zsqbench.synthesis import HAST, BNLoss, class_logits

        self = self.resolved(teacher)
        height, width = teacher.input_size[1:]
        if self.side > min(height, width):
            raise zsqbench.ZSQBenchError(
                f"generator {self.name!r} has windows of side {self.side}, and images are {height} x {width} pixels; "
                f"give a side of {min(height, width)} at most"
            )
        state = ctx.resume() or {}
        targets = state["targets"].to(ctx.device) if state else self._draw_targets(teacher, ctx)
        of_batches = torch.split(targets, self.batch_size)  # views: a change of one is a change of `targets`

        with BNLoss(teacher.module, HAST) as bn_loss:

            def losses(pixels: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
                labels = of_batches[step // self.iterations]
                gap = bn_loss(pixels, outputs=True)
                towards = functional.cross_entropy(class_logits(gap.seen.outputs, labels), labels)
                return gap.total + self.beta * towards, {"bn_loss": gap.total, "cross_entropy": towards}

            def stepped(pixels: "Tensor", step: int) -> None:
                batch, of_batch = divmod(step, self.iterations)
                if of_batch == self.iterations // 2:
                    spare = torch.tensor([height, width], device=ctx.device) - self.side + 1
                    corners = (ctx.rand(len(pixels), 2) * spare).long()
                    paste_windows(pixels, of_batches[batch], corners, self.side)

            # the base has the loop, with its curves, progress and checkpoints; `keep` adds to these
            images = self.optimize(teacher, ctx, losses, state, stepped=stepped, keep=lambda: {"targets": targets})
        share = self.side**2 / (height * width)
        ctx.note(f"windows of {self.side} x {self.side} pixels are {100 * share:.3g} % of an image and of its label")
        return zsqbench.CalibrationSet(images, targets.cpu(), provenance={"preset": self.preset, "side": self.side})

    def _draw_targets(self, teacher: "Pretrained", ctx: "StepContext") -> "Tensor":
        """A class for each image, as probabilities [N, classes]."""
        import torch
        from torch.nn import functional

        if teacher.classes is None:  # the harness says so before anything runs, for a class with `needs_classes`
            raise zsqbench.ZSQBenchError(f"generator {self.name!r} makes images of classes, and the network has none")
        drawn = torch.randint(teacher.classes, (self.images,), generator=ctx.rng, device=ctx.device)
        return functional.one_hot(drawn, teacher.classes).float()


def paste_windows(images: "Tensor", labels: "Tensor", corners: "Tensor", side: int) -> None:
    """Paste into each image the same window of the image before it, and mix their labels by area; both in place.

    The first image gets a window of the last one. Images are [N, C, H, W], labels probabilities [N, classes], and
    corners the first row and column of each window, int64 [N, 2]. Windows are `side` pixels high and wide.
    """
    import torch

    height, width = images.shape[2:]
    rows, columns = (
        torch.arange(length, device=images.device) - corners[:, axis, None]
        for axis, length in enumerate((height, width))
    )
    in_rows, in_columns = ((places >= 0) & (places < side) for places in (rows, columns))
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    with torch.no_grad():
        images.copy_(torch.where(inside, images.roll(1, dims=0), images))
        labels.lerp_(labels.roll(1, dims=0), side * side / (height * width))


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `patchwork`."""
    return [Patchwork]
