"""SQuant: data-free rounding of weights by a diagonal approximation of the Hessian (Guo et al., ICLR 2022)."""

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.scheme import Grid

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from zsqbench import CalibrationSet, Pretrained, StepContext

Mode = Literal["full", "kernel", "channel", "element"]

NARROWEST_SPAN = 1e-8
"""Smallest range of a weight's channel in the released code; a narrower one counts as this."""
SIGMAS = {4: 12.0, 6: 14.0, 8: 25.0}
"""Ends of activations in standard deviations k, by the published widths."""
SIGNED_SIGMAS = 1.25
"""Divisor of k where activations have both signs."""
CAPPED_BELOW = 6
"""Below this width, activations end at the largest observed value at most."""


class SQuant(zsqbench.Quantizer):
    """Rounds weights so that their errors cancel within each kernel and each output channel; reads no images.

    It starts from round to nearest, with e = code - scaled weight. SQuant-K: in each kernel (out, in), round(|sum e|)
    weights are rounded the other way. These are the weights with the largest |e| that bring the sum closer to zero.
    SQuant-C: the same in each output channel, to which each kernel offers one weight. A kernel that flipped more than
    |sum e| offers its last flipped weight, to be flipped back. Other kernels offer the weight that would have come
    next. 1x1 convolutions and linear layers have the second stage alone, on all weights. At the end every sum of e is
    within half a step, and every |e| is below one.

    Weights are on the grid from the smallest to the largest value of each output channel. A forward pass of uniform
    noise in [0, 1), fed directly to the network, gives the grids of activations. They go from 0 to k standard
    deviations of the positive values. Where some values are negative, they go to k / 1.25 standard deviations of all
    values on both sides. Below 6 bits they end at the largest value at most. All this is the released code (commit
    9cc77fc). The paper's own clipping, by the statistics of batch normalisation, could not be looked up and is not
    implemented.

    Deviations:

    - The scheme decides which tensors are quantized, and whether batch normalisation is folded. The released code
      quantizes weights and inputs of all layers, except the image, which stays float, and the classifier's input with 8
      bits. It leaves batch normalisation unfolded, and published tables were made in this way. Up to rounding this
      makes no difference, because a channel's grid scales with the channel.
    - Where the image is quantized, its range is that of valid pixels.
    - k is published for 4, 6 and 8 bits. Other widths take k of the next larger one, or 25 above 8. Each tensor takes k
      of its own width. The released code takes 12 for all of W4A4, its 8-bit input included; `sigmas: 12` does this.
    - There are 32 images of noise, not 256. On ResNet-20 deviations agree to 1 %, and largest values are some 8 %
      smaller.
    - A constant channel gets a grid that holds its value. Activations without a deviation, or without a positive value,
      end at the largest magnitude.
    - A kernel whose sum is exactly 0 offers nothing. The released code offers the last weight in Python, and one out of
      bounds in CUDA. Only weights that can be rounded the other way are offered.

    A weight's range need not include zero, as in the released code but unlike elsewhere in this harness. So the zero
    point of a channel of one sign is not a code. A scheme may demand symmetric weights, which the released code does
    not have. S is then that of the finest symmetric grid that holds the channel, and z' is 0. All else is the same.
    """

    name = "squant"
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")
    seeded = False
    needs_images = False

    mode: Mode = Field(
        "full",
        description="full: flips of kernels, then of channels; kernel or channel: one of the two; element: "
        "round to nearest",
    )
    sigmas: float | None = Field(
        None, gt=0, description="standard deviations k at which activations end; unset: chosen by each tensor's bits"
    )
    noise_images: int = Field(32, gt=0, description="images of noise on which activation ranges are found")

    def quantize(
        self,
        student: "nn.Module",
        teacher: "Pretrained",
        data: "CalibrationSet | None",  # noqa: ARG002
        ctx: "StepContext",
    ) -> None:
        """Choose the codes of all weights, then set the ranges of activations in one pass of noise."""
        import torch

        from zsqbench.quant import activation_quantizers, calibrate_activations, minmax, quantized_layers

        with torch.no_grad():
            for name, layer in quantized_layers(student):
                quantizer = layer.weight_quantizer
                weight = layer.weight.float()
                if not weight.isfinite().all():
                    raise zsqbench.ZSQBenchError(
                        f"quantizer 'squant': the weight of layer {name!r} has NaN or infinity"
                    )
                half = 2.0 ** (quantizer.bits - 1)
                if quantizer.grid == "symmetric":
                    quantizer.set_range(*minmax(weight, quantizer.axis))
                    scaled = weight / quantizer.scale
                else:
                    scale, zero_point = signed_grid(weight, quantizer.bits)
                    quantizer.set_parameters(1 / scale, half - zero_point)
                    scaled = scale * weight - zero_point
                layer.choose(choose_codes(scaled, quantizer.bits, self.mode) + half)
        if activation_quantizers(student):
            noise = ctx.rand(self.noise_images, *teacher.input_size)
            calibrate_activations(student, [noise], partial(self._observer, teacher))

    def _observer(self, teacher: "Pretrained", quantizer: Any) -> "Callable[[Tensor], None]":
        from zsqbench.quant import include_zero

        def observe(values: "Tensor") -> None:
            if quantizer.role == "input":
                dark, bright = (pixels.to(values) for pixels in teacher.valid_range())
                quantizer.set_range(*include_zero(dark.min(), bright.max()))
                return
            low, high = values.aminmax()
            if not (low.isfinite() and high.isfinite()):
                raise zsqbench.ZSQBenchError(
                    f"quantizer 'squant': activation {quantizer.name!r} of uniform noise has NaN or infinity"
                )
            end = activation_end(values, quantizer.bits, self.sigmas)
            if low < 0:  # 2^b - 1 steps from -end to end, and zero, half a step off a code, on the even one
                quantizer.set_threshold(end * (2**quantizer.bits / (2**quantizer.bits - 1)), signed=True)
            else:
                quantizer.set_range(end.new_zeros(()), end)

        return observe


def signed_grid(weight: "Tensor", bits: int) -> "tuple[Tensor, Tensor]":
    """S and z' of each output channel, shaped to broadcast: codes round(S w - z') are -2^(b-1) .. 2^(b-1) - 1."""
    import torch

    rows = weight.flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    steps = torch.full_like(low, 2**bits - 1)  # a number over a tensor would be rounded twice
    span = torch.where(low == high, steps * low.abs(), high - low)  # a constant channel: S = 1 / |w|
    scale = steps / span.clamp(min=NARROWEST_SPAN)
    shape = [-1] + [1] * (weight.dim() - 1)
    return scale.view(shape), (torch.round(scale * low) + 2 ** (bits - 1)).view(shape)


def choose_codes(scaled: "Tensor", bits: int, mode: Mode = "full") -> "Tensor":
    """Codes -2^(b-1) .. 2^(b-1) - 1, in floating point, for scaled weights S w - z' [out, in, ...]."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x = scaled.reshape(*scaled.shape[:2], -1)  # [out, in, kernel]
    codes = x.round()
    e = codes - x
    # priorities |e| of weights that may be rounded up, or down, instead; 0 for all others
    up, down = -e * ((e < 0) & (x < high)), e * ((e > 0) & (x > low))
    at = None
    if mode in {"full", "kernel"} and x.shape[2] > 1:
        total = e.sum(2, keepdim=True)
        flips, order = _flips(total, up, down)
        codes, e = codes + flips, e + flips
        at, up, down = _offers(total, order, e, up, down)
    if mode in {"full", "channel"}:
        flips, _ = _flips(e.flatten(1).sum(1, keepdim=True), up.flatten(1), down.flatten(1))
        flips = flips.view_as(up)
        codes = codes + flips if at is None else codes.scatter_add(2, at, flips)
    return codes.clamp(low, high).view_as(scaled)


def _flips(total: "Tensor", up: "Tensor", down: "Tensor") -> "tuple[Tensor, Tensor]":
    """Steps -1, 0 or 1 that bring each row's sum of errors [..., 1] closest to zero, and the order of the row."""
    import torch

    rises = total < 0
    priority = torch.where(rises, up, down)
    order = priority.sort(dim=-1, descending=True, stable=True).indices
    first = torch.arange(order.shape[-1], device=order.device) < total.abs().round()
    flipped = torch.zeros_like(priority).scatter_(-1, order, first.to(priority))
    return flipped * (priority > 0) * torch.where(rises, 1.0, -1.0), order


def _offers(
    total: "Tensor", order: "Tensor", e: "Tensor", up: "Tensor", down: "Tensor"
) -> "tuple[Tensor, Tensor, Tensor]":
    """The weight that each kernel offers its channel after its flips [out, in, 1], with its priorities up and down."""
    import torch

    rises, count = total < 0, total.abs().round()
    over = count >= total.abs()  # offers to flip back; other kernels offer the next weight
    at = order.gather(2, (count - over.to(count)).clamp(min=0).long())
    candidate = (torch.where(rises, up, down).gather(2, at) > 0) & (total != 0)
    priority = e.gather(2, at).abs() * candidate
    return at, priority * (rises != over), priority * (rises == over)


def activation_end(values: "Tensor", bits: int, sigmas: float | None = None) -> "Tensor":
    """The end of the range of an activation with these values, on both sides if some are negative."""
    import torch

    from zsqbench.quant.ranges import without_zeros

    low, high = values.aminmax()
    largest = torch.maximum(high, -low)
    kept = values if low < 0 else without_zeros(values)
    if kept.numel() == 0 or kept.min() == kept.max():
        return largest
    if sigmas is None:
        sigmas = next((sigmas for width, sigmas in SIGMAS.items() if bits <= width), max(SIGMAS.values()))
    end = kept.std() * (sigmas / SIGNED_SIGMAS if low < 0 else sigmas)
    return torch.minimum(end, high if high > 0 else largest) if bits < CAPPED_BELOW else end


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `squant`."""
    return [SQuant]
