"""Initial values of learned step sizes: LSQ's rule."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from zsqbench.quant.grids.fake_quant import ActivationQuantizer, TensorQuantizer
from zsqbench.quant.ranges.calibration import Observer, calibrate_activations
from zsqbench.quant.student import quantized_layers


@torch.no_grad()
def begin_steps(student: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Set the step size of each symmetric grid to 2 <|x|> / sqrt(Q_P) (Esser et al., ICLR 2020).

    <|x|> is the mean size of a weight's values (of a channel's, where each channel has a grid). For activations it is
    averaged over batches of images [n, C, H, W]. A tensor is measured when all earlier tensors are rounded, as in LSQ's
    first pass. It is signed where a value below zero was seen. A held grid stays. Raises ValueError for another affine
    grid, because LSQ has none.
    """
    for _, layer in quantized_layers(student):
        quantizer, weight = layer.weight_quantizer, layer.weight
        sizes = weight.abs().mean() if quantizer.axis is None else weight.abs().flatten(1).mean(1)
        _begin(quantizer, sizes, signed=True)
    seen: dict[ActivationQuantizer, tuple[Tensor, int, bool]] = {}

    def observer(quantizer: ActivationQuantizer) -> Observer:
        sizes, count, signed = seen.get(quantizer, (torch.zeros(()), 0, False))

        def see(values: Tensor) -> None:
            if quantizer.is_held:
                quantizer.enabled = True
                return
            # for a layer that is called again, these are all its outputs so far
            total = sizes.to(values.device) + values.abs().mean()
            seen[quantizer] = total, count + 1, signed or quantizer.is_signed(values.min())
            _begin(quantizer, total / (count + 1), signed=seen[quantizer][2])

        return see

    for images in batches:
        calibrate_activations(student, [images], observer)


def _begin(quantizer: TensorQuantizer, sizes: Tensor, *, signed: bool) -> None:
    if quantizer.grid != "symmetric":
        raise ValueError(f"the grid of {quantizer.name!r} is {quantizer.grid}; expected symmetric")
    half = 2 ** (quantizer.bits - 1)
    largest = half - 1 if signed else 2 * half - 1
    sizes = torch.where(sizes < torch.finfo(sizes.dtype).tiny, torch.ones_like(sizes), sizes)  # tensors of zeros only
    scale = 2 * sizes / largest**0.5
    quantizer.set_parameters(scale, torch.full_like(scale, half if signed else 0))
