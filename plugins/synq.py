"""SynQ: Accurate Zero-Shot Quantization by Synthesis-Aware Fine-Tuning (Kim, Kim, Kang, ICLR 2025): its training."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from zsqbench_plugins.shared.hard_samples import HardSampleQuantizer, HardSampleUpdate
from zsqbench_plugins.shared.protocols import HAST_PROMOTION, RELEASED_PROMOTION

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx

    from zsqbench import StepContext
    from zsqbench.quant import FineTuning

_SCRIPT: Mapping[str, float] = {"cam_weight": 50.0, "ce_weight": 0.5}
_PAPER: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"lowpass": 20 / 32, "easy_below": 0.7},
    "cifar100": {"lowpass": 20 / 32, "easy_below": 0.5},
    "imagenet": {"lowpass": 40 / 224, "easy_below": 0.5},
}
_RELEASED: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"lowpass": 80 / 32, "align_promoted": False},
    "cifar100": {"lowpass": 80 / 32, "align_promoted": False},
    "imagenet": {"lowpass": 80 / 224, "align_promoted": True, "milestones": [96, 196, 346]},
}
SMALLEST = 1e-10
"""The least weight of a channel, and the least range of a map, as released."""


class SynQ(HardSampleQuantizer):
    """`hast` with three corrections for synthetic images, each an option that 0 disables.

    - `lowpass`: the augmented batch first loses its high frequencies (`LowPass`). D0 is `lowpass` times the shorter
      side of an image. The released 80 frequencies change nothing at 32 pixels, where the highest frequency is 22.6.
    - `cam_weight`: float network and student should look at the same place. The mean squared difference of their
      Grad-CAM maps (`class_activation`) is minimised with the other losses. The maps are of the original images, not of
      the harder ones, and no image is made harder for this loss. Each network's map is of the class that the network
      itself predicts. A channel counts at least 1e-10 and has no gradient. All this is as released. The paper says the
      label's class, and has no lower bound.
    - `ce_weight`: cross-entropy towards the label, for easy images alone. An image is easy if its difficulty is below
      `easy_below`. Difficulty is one minus the label's probability in the float network's output for the filtered
      image. The losses are summed and divided by the number of all images. An image is judged once, and the judgement
      also holds for its harder version.

    The loss is HAST's plus this cross-entropy, which also counts when images are made harder. The paper's equation has
    neither alignment nor harder images, but its experiments have both. With all three at 0 the method is `hast`, bit
    for bit. Labels are those of the set, or the float network's predictions where the set has none.

    The paper searched its options on grids by test accuracy, so its table has no single setting. The default preset is
    `paper`. D0 is 20 of 32 pixels, where the paper's grid begins (its figures have 8, which is not in the grid), and 40
    of 224, as in the figures. `easy_below` is the paper's best value. Weights are those of the release's script, which
    are in the paper's grids. Of 100 epochs, 4 only learn ranges. The rest is HAST's preset `paper`. `released` has the
    values of the release's script and parser: D0 80, 0.5, lambda 1000, 101 epochs. For CIFAR it does not align harder
    images (`align_promoted`); the release computes this loss and discards it. The release's settings for CIFAR were not
    available, so batches and learning rates there are HAST's.

    Deviations, besides those of `ste`:

    - The map is that of the last convolution with more than one position. The release takes the last registered one; in
      MobileNetV2 this is a classifier whose map is one pixel. In a scheme that folds batch normalisation, the map is
      the output behind it.
    - Ranges are averaged over real batches only. In the release each new Grad-CAM passes images of zeros through the
      student, which enter the average in turns.
    - The constant that excluded images add to the release's cross-entropy is left out. So are 1e-7 beside logarithms
      and 1e-10 beside gradients that contain a zero.
    """

    name = "synq"
    version = 1
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": {
            name: {**HAST_PROMOTION[name], **_SCRIPT, "epochs": 96, "align_promoted": True, **values}
            for name, values in _PAPER.items()
        },
        "released": {
            name: {**HAST_PROMOTION[name], **RELEASED_PROMOTION, **_SCRIPT, "epochs": 97, "easy_below": 0.5, **values}
            for name, values in _RELEASED.items()
        },
    }
    least_classes = 2

    lowpass: Auto[float] = auto(
        ge=0, description="D0 of the low-pass filter, in parts of the shorter side of an image; 0 disables the filter"
    )
    cam_weight: Auto[float] = auto(ge=0, description="weight of the gap between Grad-CAM maps; 0 disables it")
    ce_weight: Auto[float] = auto(ge=0, description="weight of the cross-entropy of easy images; 0 disables it")
    easy_below: Auto[float] = auto(
        ge=0, le=1, description="difficulty below which an image is easy; 1: all images are easy"
    )
    align_promoted: Auto[bool] = auto(description="align features of harder images too; as released, not for CIFAR")

    @property
    def needs_map(self) -> bool:
        """True unless Grad-CAM is off."""
        return self.cam_weight != 0

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values. Raises ZSQBenchError for images that are smaller than the filter."""
        found = super().automatic(network, scheme)
        part = found["lowpass"] if self.lowpass is None else self.lowpass
        side = min(network.input_size[1:])
        if 0 < part * side < 1:
            raise zsqbench.ZSQBenchError(
                f"lowpass {part:g} of images of {side} pixels is a filter of {part * side:.2g} frequencies, which "
                f"leaves one colour: give at least {1 / side:.2g}, or 0, which disables the filter"
            )
        return found

    def further_features(self, network: "fx.GraphModule", ctx: "StepContext") -> "Sequence[fx.Node]":
        """The last map, and all other inputs of the network behind it. Raises ZSQBenchError where there is no map."""
        if not self.cam_weight:
            return ()
        from zsqbench.quant import cut_behind, last_map

        node = last_map(network)
        if node is None:
            raise zsqbench.ZSQBenchError(
                "Grad-CAM needs a convolution whose map has more than one position, and the network has none: give "
                "cam_weight: 0"
            )
        ctx.note(f"Grad-CAM maps are of {node.target}")
        return cut_behind(network, node)

    def update(
        self, engine: "FineTuning", network: "fx.GraphModule", ctx: "StepContext", aligned: int
    ) -> "Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]":
        """HAST's update with the three corrections."""
        return _Update(self, engine, network, ctx, aligned)


class _Update(HardSampleUpdate):
    """HAST's update on filtered images, with two further losses."""

    method: SynQ

    def __init__(
        self, method: SynQ, engine: "FineTuning", network: "fx.GraphModule", ctx: "StepContext", aligned: int
    ) -> None:
        super().__init__(method, engine, network, ctx, aligned)
        self._lowpass = LowPass(method.lowpass) if method.lowpass else None
        if method.cam_weight:
            from zsqbench.quant import from_features

            heads = [from_features(each, aligned) for each in (network, engine.network)]
            self._score_theirs, self._score_ours = (ctx.compile(class_score(head)) for head in heads)
            self._gap = ctx.compile(map_gap)

    @property
    def twice(self) -> bool:
        return bool(self.method.cam_weight)

    def seen(self, images: "Tensor") -> "Tensor":
        return images if self._lowpass is None else self._lowpass(images)

    def judged(self, expected: "Tensor", labels: "Tensor | None") -> "tuple[Tensor, ...]":
        if not self.method.ce_weight:
            return ()
        targets = expected.argmax(1) if labels is None else labels
        if labels is None:
            self.ctx.note("labels are the float network's predictions, because the calibration set has none")
        return targets, is_easy(expected, targets, self.method.easy_below)

    def further(self, logits: "Tensor", *judged: "Tensor") -> "dict[str, Tensor]":
        return {"ce": self.method.ce_weight * easy_cross_entropy(logits, *judged)} if judged else {}

    def beside(self, images: "Tensor", theirs: "tuple[Tensor, ...]", ours: "tuple[Tensor, ...]") -> "dict[str, Tensor]":
        if not self.method.cam_weight:
            return {}
        weights = channel_weights(self._score_theirs, theirs), channel_weights(self._score_ours, ours)
        gap = self._gap(theirs[0].detach(), ours[0], *weights, images.shape[2], images.shape[3])
        return {"cam": self.method.cam_weight * gap}

    def aligns(self, *, harder: bool) -> bool:
        return super().aligns(harder=harder) and (self.method.align_promoted is True or not harder)


class LowPass:
    """A Gaussian filter of images: Re F^-1(G F(x)), G = exp(-(u^2 + v^2) / (2 D0^2)), u and v in whole frequencies.

    D0 is a part of the shorter side. Channels are filtered separately, on the device of the images. G is made once for
    each size of images, because a recorded update reads it at a fixed address.
    """

    def __init__(self, part: float) -> None:
        self.part = part
        self._gains: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, images: "Tensor") -> "Tensor":
        """Filtered images [N, C, H, W]."""
        import torch

        height, width = images.shape[2:]
        size = height, width, images.dtype, images.device
        if size not in self._gains:
            self._gains[size] = lowpass_gains(height, width, self.part * min(height, width)).to(images)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * self._gains[size], s=(height, width))
        return filtered


def lowpass_gains(height: int, width: int, cutoff: float) -> "Tensor":
    """G [height, width // 2 + 1] at the frequencies of `torch.fft.rfft2`, float64; the cut-off is in frequencies."""
    import torch

    rows = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)
    return torch.exp(-(rows[:, None].square() + columns.square()) / (2 * cutoff**2))


def is_easy(logits: "Tensor", labels: "Tensor", below: float) -> "Tensor":
    """1 for images whose difficulty 1 - p is below a bound, p the label's probability, and else 0; float32 [N].

    Labels are classes [N] or, where they are soft, [N, classes]: then p is their mean probability. Below 1 all are.
    """
    probabilities = logits.softmax(1)
    soft = labels.is_floating_point()
    of_label = (probabilities * labels).sum(1) if soft else probabilities.gather(1, labels[:, None])[:, 0]
    return (of_label > 1 - below).float() if below < 1 else of_label.new_ones(len(of_label))


def easy_cross_entropy(logits: "Tensor", labels: "Tensor", easy: "Tensor") -> "Tensor":
    """The cross-entropies of easy images, summed, and divided by the number of all images."""
    from torch.nn import functional

    return (functional.cross_entropy(logits, labels, reduction="none") * easy).mean()


def class_score(head: "fx.GraphModule") -> "Callable[..., Tensor]":
    """The sum over images of the largest logit, as a function of the inputs of the network behind the last map."""
    from zsqbench.synthesis import class_logits

    def score(*values: "Tensor") -> "Tensor":
        logits = class_logits(head(*values), values[0])
        return logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()

    return score


def channel_weights(score: "Callable[..., Tensor]", values: "Sequence[Tensor | int]") -> "Tensor":
    """Grad-CAM's weight of each channel [N, K]: the mean gradient of the score to the map, the first of the values.

    It is at least 1e-10. The network behind the map runs once more, on values that are cut off from the rest, so that
    the graphs of the update stay whole. A value may be a size, such as the number of images.
    """
    import torch

    others = [each.detach() if isinstance(each, torch.Tensor) else each for each in values[1:]]
    with torch.enable_grad():
        maps = cast("Tensor", values[0]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(maps, *others), maps)
    return gradient.float().mean((2, 3)).clamp_min(SMALLEST)


def class_activation(maps: "Tensor", weights: "Tensor", height: int, width: int) -> "Tensor":
    """Grad-CAM [N, height, width]: ReLU of the weighted sum of maps [N, K, h, w], enlarged, each from 0 to 1.

    Gradients pass the sum, and also the smallest and the largest value.
    """
    from torch.nn import functional

    seen = (maps.float() * weights[:, :, None, None]).sum(1).relu()
    # bilinear, as two products of matrices: on a GPU, torch's own sums its gradient in any order
    rows, columns = (
        functional.interpolate(seen.new_ones(each).diag()[None], side, mode="linear")[0]
        for each, side in ((seen.shape[1], height), (seen.shape[2], width))
    )
    enlarged = rows.T @ seen @ columns
    low, high = enlarged.amin((1, 2), keepdim=True), enlarged.amax((1, 2), keepdim=True)
    return (enlarged - low) / (high - low + SMALLEST)


def map_gap(
    theirs: "Tensor", ours: "Tensor", their_weights: "Tensor", our_weights: "Tensor", height: int, width: int
) -> "Tensor":
    """The mean squared difference of the Grad-CAM maps of float network and student."""
    expected = class_activation(theirs, their_weights, height, width)
    return (class_activation(ours, our_weights, height, width) - expected).square().mean()


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide the quantizer `synq`."""
    return [SynQ]
