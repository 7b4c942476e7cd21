"""Setting the ranges of a student's quantizers from its weights and from calibration images."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from zsqbench.quant.fake_quant import ActivationQuantizer, TensorQuantizer
from zsqbench.quant.observers import Range, RunningMinMax, include_zero, minmax, mse80
from zsqbench.quant.prepare import activation_quantizers, quantized_layers

Ranges = Literal["minmax", "mse"]
"""How ranges are chosen: from end to end, or by the search `mse80`."""


@torch.no_grad()
def calibrate_weights(student: nn.Module, ranges: Ranges) -> None:
    """Set the range of each weight quantizer, per output channel, from the weight itself; zero is inside."""
    for _, layer in quantized_layers(student):
        quantizer, weight = layer.weight_quantizer, layer.weight
        if ranges == "mse":
            quantizer.set_range(*mse80(weight, quantizer.bits, quantizer.axis, zero=True))
        else:
            quantizer.set_range(*include_zero(*minmax(weight, quantizer.axis)))


@torch.no_grad()
def calibrate_activations_minmax(student: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the range of each activation quantizer to the running min-max over batches of images.

    A quantizer already rounds while it observes, as in ZeroQ, so that each one sees quantized inputs.
    """
    with ExitStack() as hooks:
        for _, quantizer in activation_quantizers(student):
            hooks.enter_context(_ranges_from(RunningMinMax().update, quantizer))
        for images in batches:
            student(images)


@torch.no_grad()
def calibrate_activations_mse(student: nn.Module, images: Tensor) -> None:
    """Set the range of each activation quantizer by the search `mse80`, in one forward pass of all the images.

    A quantizer rounds as soon as it is set, as in BRECQ's initialisation, so that the next one sees quantized inputs.
    """
    with ExitStack() as hooks:
        for _, quantizer in activation_quantizers(student):
            hooks.enter_context(_ranges_from(partial(mse80, bits=quantizer.bits, zero=True), quantizer))
        student(images)


@contextmanager
def switched(quantizers: Iterable[TensorQuantizer], *, enabled: bool) -> Iterator[None]:
    """Switch quantizers on or off, until the block ends."""
    before = [(quantizer, quantizer.enabled) for quantizer in quantizers]
    try:
        for quantizer, _ in before:
            quantizer.enabled = enabled
        yield
    finally:
        for quantizer, was_enabled in before:
            quantizer.enabled = was_enabled


@contextmanager
def _ranges_from(range_of: Callable[[Tensor], Range], quantizer: ActivationQuantizer) -> Iterator[None]:
    """Let a quantizer take its range from each tensor that it is about to round."""

    def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        quantizer.set_range(*range_of(inputs[0].float()))

    handle = quantizer.register_forward_pre_hook(observe)
    try:
        yield
    finally:
        handle.remove()
