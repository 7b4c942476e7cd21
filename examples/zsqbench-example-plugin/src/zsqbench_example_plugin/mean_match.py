"""mean_match: round to nearest, then let each layer's mean output be that of the float network."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from zsqbench import CalibrationSet, Pretrained, Scheme, StepContext


class MeanMatch(zsqbench.GridQuantizer):
    """Rounds weights and activations to nearest, on searched ranges, and corrects biases on the calibration images.

    An example. The correction is the empirical one of DFQ (Nagel et al., ICCV 2019). Its paper has it beside the
    analytic one, which `dfq` implements. The mean of each channel of a layer's output is compared with that of the
    float network, and the bias takes the difference. Layers are corrected in the order of execution, so that each sees
    what those before it give after their correction. DFQ also equalizes weights and absorbs biases before, which is
    left out here. Ranges are those of `rtn`, searched on the first `search_images` images.

    All images pass through the network once for each layer.
    """

    name = "mean_match"
    seeded = False
    memory_options = ("search_images", "batch_size")

    search_images: int = Field(64, gt=0, description="images that activation ranges are searched on")
    batch_size: int = Field(64, gt=0, description="images of a forward pass while means are measured")

    def prepare(self, teacher: "Pretrained", scheme: "Scheme") -> "fx.GraphModule":
        """Give each layer a bias, here and not in `quantize`: artifacts are loaded into what this returns."""
        from zsqbench.quant import add_biases

        student = super().prepare(teacher, scheme)
        add_biases(student)
        return student

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",  # noqa: ARG002 - the student with its quantizers off is the float network
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Set all ranges, then correct the biases. Raises ZSQBenchError without calibration images."""
        import torch

        from zsqbench.quant import (
            activation_quantizers,
            calibrate_activations_by,
            calibrate_weights,
            quantized_layers,
            switched,
            weight_quantizers,
        )

        images = self.images_of(data).to(ctx.device)
        calibrate_weights(student, "mse")
        searched = calibrate_activations_by("mse", student, images, self.search_images)
        layers = dict(quantized_layers(student))
        if not layers:
            ctx.images_read(searched)  # without weights to correct for, the others are not looked at
            return
        batches = torch.split(images, self.batch_size)
        quantizers = [quantizer for _, quantizer in (*weight_quantizers(student), *activation_quantizers(student))]
        with switched(quantizers, enabled=False):
            expected = mean_outputs(student, layers, batches)
        moved = []
        for index, (path, layer) in enumerate(layers.items()):
            missing = expected[path] - mean_outputs(student, {path: layer}, batches)[path]
            layer.get_parameter("bias").data.add_(missing)
            moved.append(missing.square().mean().sqrt())
            ctx.log("bias_shift", moved[-1], index)  # a curve over layers, where others have one over steps
            ctx.progress(index + 1, len(layers))
        most = int(torch.stack(moved).argmax())
        ctx.note(
            f"biases of {len(moved)} layers moved, most in {list(layers)[most]}: by {moved[most].item():.3g} (RMS)"
        )


def mean_outputs(
    student: "nn.Module", layers: "Mapping[str, nn.Module]", batches: "Iterable[Tensor]"
) -> "dict[str, Tensor]":
    """The mean over images and places of each channel of these layers' outputs, float32 [C], by the layer's path.

    A layer that is called several times in a pass has the mean over its calls.
    """
    from contextlib import ExitStack
    from functools import partial

    import torch

    found: dict[str, list[Tensor]] = {path: [] for path in layers}
    with torch.no_grad(), ExitStack() as hooks:
        for path, layer in layers.items():
            channels = -1 if hasattr(layer, "in_features") else 1  # linear layers have channels last
            hooks.callback(layer.register_forward_hook(partial(_keep_means, found[path], channels)).remove)
        for images in batches:
            student(images)
    return {path: torch.cat(means).mean(0) for path, means in found.items()}


def _keep_means(
    kept: "list[Tensor]", channels: int, _: "nn.Module", __: "tuple[Tensor, ...]", output: "Tensor"
) -> None:
    """Keep the means [N, C] of an output over its places; a hook behind a layer, which changes nothing."""
    by_channel = output.float().movedim(channels, 1)
    kept.append(by_channel.reshape(*by_channel.shape[:2], -1).mean(2))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `mean_match`."""
    return [MeanMatch]
