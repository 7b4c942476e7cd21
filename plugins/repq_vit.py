"""RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers (Li et al., ICCV 2023)."""

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

import zsqbench
from zsqbench.scheme import Grid

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import ActivationQuantizer, NormedLayers, QuantizedLayer


class RepQViT(zsqbench.Quantizer):
    """Gives outputs of layer normalisations one grid for each channel, then moves the differences into weights.

    Ranges end at quantiles: of p in 0.999, 0.9999 and 0.99999 the one with the least mean squared error, for each
    output channel of a weight and for each activation. One pass finds them, in which all earlier tensors are rounded.
    In that pass, the output of a layer normalisation with a single reading linear layer has scales s_j and zero points
    z_j for its channels j. Then S and Z are their means, r_j = s_j / S, and gain, offset, weights and bias become

        g_j / r_j,   (o_j + s_j (z_j - Z)) / r_j,   W_ij r_j,   b_i - sum_j W_ij s_j (z_j - Z).

    This changes nothing in the float network, and one grid (S, Z) then fits all channels. The weight's ranges are found
    anew; all other ranges stay. Nothing is learned. In the scheme `repq` attention weights are on a logarithmic grid,
    whose top is found by the same search. The method works in any scheme of affine grids.

    The release (commit a160561) made the published tables. As in the release, Z is not rounded. So a grid of b bits has
    one value more than 2^b, and integer hardware cannot compute with it. `round_zero_point` rounds Z. The last
    normalisation, before the classifier, has one grid from the start.

    Deviations:

    - Pairs of a normalisation and a layer are found in the graph, not by names.
    - A tensor of four axes, as Swin has in newer libraries, has its channels on the last axis. The release would treat
      images as channels.
    - A constant channel keeps its value. The release divides 0 by 0.
    - Quantiles are exact for tensors of any size.
    - Other tensors that a scheme quantizes have one grid each, by the same search.
    """

    name = "repq_vit"
    memory_options = ("search_images",)
    seeded = False
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine",)
    activation_grids: ClassVar[tuple[Grid, ...]] = ("affine",)

    search_images: int = Field(32, gt=0, description="images on which ranges are found, in one pass")
    reparametrize: bool = Field(
        True,
        description="move the differences of channels into weights; false: outputs of layer normalisations "
        "have one grid from the start",
    )
    round_zero_point: bool = Field(False, description="round the zero point that channels share to a code")

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Find ranges in one pass and rescale. Raises ZSQBenchError without calibration images."""
        import torch

        from zsqbench.quant import check_images, memory_errors

        images = self.images_of(data)[: self.search_images]
        check_images(images, teacher.input_size)
        pairs = rescalable(student) if self.reparametrize else []
        with memory_errors(ctx.device, {"search_images": self.search_images}), torch.no_grad():
            calibrate(student, images.to(ctx.device), [pair.quantizers[0] for pair in pairs])
            for pair in pairs:
                rescale(student, pair, round_zero_point=self.round_zero_point)
        ctx.images_read(len(images))
        ctx.note(f"{len(pairs)} layer normalisations were rescaled, each with the linear layer that reads it")


def rescalable(student: "fx.GraphModule") -> "list[NormedLayers]":
    """Layer normalisations, except the last, whose output is quantized and read by one layer alone."""
    from zsqbench.quant import normed_layers, quantized_layers

    layers = dict(quantized_layers(student))
    return [
        each
        for each in normed_layers(student)
        if len(each.quantizers) == len(each.layers) == 1
        and each.layers[0] in layers
        and layers[each.layers[0]].weight_quantizer.role != "last_weight"
    ]


def calibrate(student: "fx.GraphModule", images: "Tensor", by_channel: "Collection[ActivationQuantizer]") -> None:
    """Set all quantizers, those of activations in one pass of images [N, C, H, W].

    The quantizers in `by_channel` get a grid for each channel.
    """
    from zsqbench.quant import calibrate_activations, quantile_search, quantized_layers

    def see(quantizer: "ActivationQuantizer", values: "Tensor") -> None:
        if quantizer in by_channel:
            quantizer.scale, quantizer.zero_point = quantile_search(values, quantizer.bits, values.dim() - 1)
            quantizer.enabled = True
        else:
            quantizer.set_parameters(*quantile_search(values, quantizer.bits))

    for _, layer in quantized_layers(student):
        _search_weight(layer)
    calibrate_activations(student, [images], lambda quantizer: partial(see, quantizer))


def rescale(student: "fx.GraphModule", pair: "NormedLayers", *, round_zero_point: bool) -> None:
    """Give a quantizer of channels [C] one grid. Normalisation and layer change so that the float network stays."""
    from torch import nn

    norm = cast("nn.LayerNorm", student.get_submodule(pair.norm))
    layer = cast("QuantizedLayer", student.get_submodule(pair.layers[0]))
    (quantizer,) = pair.quantizers
    scale, zero_point = quantizer.scale, quantizer.zero_point
    one_scale, one_zero_point = scale.mean(), zero_point.mean()
    if round_zero_point:
        one_zero_point = one_zero_point.round()
    ratio, moved = scale / one_scale, scale * (zero_point - one_zero_point)
    gain, offset = (None if each is None else each.detach() for each in (norm.weight, norm.bias))
    norm.weight = nn.Parameter((1 if gain is None else gain) / ratio, requires_grad=False)
    norm.bias = nn.Parameter(((0 if offset is None else offset) + moved) / ratio, requires_grad=False)
    bias = -(layer.weight @ moved) + (0 if layer.bias is None else cast("Tensor", layer.bias))
    layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.weight = nn.Parameter(layer.weight * ratio, requires_grad=False)
    quantizer.scale, quantizer.zero_point = one_scale, one_zero_point
    _search_weight(layer)


def _search_weight(layer: "QuantizedLayer") -> None:
    from zsqbench.quant import quantile_search

    quantizer = layer.weight_quantizer
    quantizer.set_parameters(*quantile_search(layer.weight, quantizer.bits, quantizer.axis))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `repq_vit`."""
    return [RepQViT]
