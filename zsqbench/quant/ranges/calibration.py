"""Set the ranges of a student's quantizers from its weights and from calibration images."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, fx, nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.affine import Affine
from zsqbench.quant.grids.fake_quant import HALVES, ActivationQuantizer, TensorQuantizer
from zsqbench.quant.grids.logarithmic import LogQuantizer
from zsqbench.quant.ranges.observers import (
    RunningMinMax,
    absmax,
    include_zero,
    lp_search,
    minmax,
    percentile,
    range_search,
    threshold_search,
)
from zsqbench.quant.ranges.quantiles import top_search
from zsqbench.quant.student import QUANTIZERS, activation_quantizers, quantized_layers, weight_quantizers

RangeMethod = Literal["minmax", "mse", "percentile"]
"""How ranges are chosen: min-max, by the search `lp_search`, or without the outermost values."""

WeightRangeMethod = Literal["minmax", "mse", "percentile", "absmax"]
"""How ranges of weights are chosen: as above, or by `absmax`."""

PERCENT = 99.9
"""The default percentile at which ranges end."""

Observer = Callable[[Tensor], None]
"""A function that gets each tensor that a quantizer is about to round, and sets that quantizer."""

Calibrate = Callable[[nn.Module, Iterable[Tensor], Callable[[ActivationQuantizer], Observer]], None]
"""`calibrate_activations`, or `calibrate_float_activations`."""


def check_images(images: Tensor, input_size: tuple[int, ...], subject: str = "the calibration set has") -> None:
    """Raise ZSQBenchError, with this subject, unless these are finite float32 images [N, *input_size], at least one."""
    expected = ("N", *input_size)
    if tuple(images.shape[1:]) != tuple(input_size) or not len(images):
        raise ZSQBenchError(f"{subject} images of shape {tuple(images.shape)}; expected {expected}")
    if images.dtype != torch.float32:
        raise ZSQBenchError(f"{subject} {images.dtype} images; expected torch.float32")
    broken = int((~images.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise ZSQBenchError(f"{subject} NaN or infinite pixels in {broken} of {len(images)} images")


@torch.no_grad()
def calibrate_weights(student: nn.Module, ranges: WeightRangeMethod, percent: float = PERCENT) -> None:
    """Set each weight quantizer from the weight itself, per output channel or for the whole weight. Zero is inside."""
    for _, layer in quantized_layers(student):
        quantizer, weight = layer.weight_quantizer, layer.weight
        if ranges == "mse":
            quantizer.set_parameters(*lp_search(weight, quantizer.bits, quantizer.axis, grid=quantizer.grid))
        elif ranges == "absmax":
            quantizer.set_parameters(*absmax(weight, quantizer.bits, quantizer.axis))
        elif ranges == "percentile":
            quantizer.set_range(*include_zero(*percentile(weight, percent, quantizer.axis)))
        else:
            quantizer.set_range(*include_zero(*minmax(weight, quantizer.axis)))


@torch.no_grad()
def search_weights(student: nn.Module, search: Callable[[Tensor, int, int | None], Affine]) -> None:
    """Set each weight quantizer by a search of affine grids (weight, bits, axis), or else by `threshold_search`."""
    for _, layer in quantized_layers(student):
        quantizer = layer.weight_quantizer
        choose = threshold_search if quantizer.grid == "symmetric" else search
        quantizer.set_parameters(*choose(layer.weight, quantizer.bits, quantizer.axis))


@torch.no_grad()
def calibrate_activations(
    student: nn.Module, batches: Iterable[Tensor], observer: Callable[[ActivationQuantizer], Observer]
) -> None:
    """Show each activation quantizer's input to an observer, in a forward pass of each batch.

    `observer(quantizer)` is called once for each quantizer, and returns the function that gets its inputs (in float32)
    and sets it. A quantizer rounds as soon as it is set, so that the next quantizer sees quantized inputs. If a
    quantizer is called several times in a pass, such as in a head that is shared over pyramid levels, all its inputs so
    far are shown.
    """
    calls = Counter(node.target for node in student.graph.nodes) if isinstance(student, fx.GraphModule) else Counter()
    given: dict[ActivationQuantizer, list[Tensor]] = {}

    def gathering(quantizer: ActivationQuantizer, see: Observer) -> Observer:
        def show(values: Tensor) -> None:
            given.setdefault(quantizer, []).append(values.flatten())
            see(torch.cat(given[quantizer]))

        return show

    with ExitStack() as hooks:
        for _, quantizer in activation_quantizers(student):
            see = observer(quantizer)
            several = calls[f"{QUANTIZERS}.{quantizer.name}"] > 1
            hooks.enter_context(observed(quantizer, gathering(quantizer, see) if several else see))
        for images in batches:
            given.clear()
            student(images.clone())  # a network may change its input in place


@torch.no_grad()
def calibrate_float_activations(
    student: nn.Module, batches: Iterable[Tensor], observer: Callable[[ActivationQuantizer], Observer]
) -> None:
    """Show inputs in the float network: no quantizer rounds before all have seen all batches."""
    quantizers = [quantizer for _, quantizer in activation_quantizers(student)]

    def sets(quantizer: ActivationQuantizer) -> Observer:
        see = observer(quantizer)

        def show(values: Tensor) -> None:
            see(values)
            quantizer.enabled = False

        return show

    with switched([quantizer for _, quantizer in weight_quantizers(student)], enabled=False):
        calibrate_activations(student, batches, sets)
    for quantizer in quantizers:
        quantizer.enabled = True


def search_float_activations(student: nn.Module, images: Tensor, search_images: int) -> int:
    """Set each activation quantizer by `range_search` in one forward pass of the float network, as QDrop does.

    The first `search_images` of the images are read. They may be on another device. Returns how many were read.
    """

    def search(quantizer: ActivationQuantizer, values: Tensor) -> None:
        quantizer.set_parameters(*range_search(values, quantizer.bits))

    first = images[:search_images].to(next(student.parameters(), images).device)
    calibrate_float_activations(student, [first], lambda quantizer: partial(search, quantizer))
    return len(first)


def calibrate_activations_minmax(
    student: nn.Module, batches: Iterable[Tensor], calibrate: Calibrate = calibrate_activations
) -> None:
    """Set the range of each activation quantizer to the running min-max over batches of images, as in ZeroQ."""

    def observer(quantizer: ActivationQuantizer) -> Observer:
        running = RunningMinMax()
        return lambda values: quantizer.set_range(*running.update(values))

    calibrate(student, batches, observer)


def calibrate_activations_mse(student: nn.Module, images: Tensor, calibrate: Calibrate = calibrate_activations) -> None:
    """Set each activation quantizer by the search `lp_search`, in one forward pass of all the images, as BRECQ does."""

    def search(quantizer: ActivationQuantizer, values: Tensor) -> None:
        signed = quantizer.is_signed(values.min())
        quantizer.set_parameters(*lp_search(values, quantizer.bits, grid=quantizer.grid, signed=signed))

    calibrate(student, [images], lambda quantizer: partial(search, quantizer))


def calibrate_activations_percentile(
    student: nn.Module, images: Tensor, percent: float = PERCENT, calibrate: Calibrate = calibrate_activations
) -> None:
    """Set the range of each activation quantizer to percentiles, in one forward pass of all the images."""

    def observer(quantizer: ActivationQuantizer) -> Observer:
        return lambda values: quantizer.set_range(*include_zero(*percentile(values, percent)))

    calibrate(student, [images], observer)


def calibrate_activations_by(
    ranges: RangeMethod,
    student: nn.Module,
    images: Tensor,
    search_images: int,
    *,
    percent: float = PERCENT,
    batch_size: int = 64,
    in_float: bool = False,
) -> int:
    """Set each activation quantizer: searches on the first `search_images`, min-max on all, in batches.

    Each sees inputs that quantizers before it, and weights, have rounded. With `in_float`, it sees those of the float
    network. The images may be on another device than the student. Returns how many of them were read.
    """
    if not activation_quantizers(student):
        return 0
    device = next(student.parameters(), images).device
    first = images[:search_images].to(device)
    calibrate = calibrate_float_activations if in_float else calibrate_activations
    if ranges == "mse":
        calibrate_activations_mse(student, first, calibrate)
    elif ranges == "percentile":
        calibrate_activations_percentile(student, first, percent, calibrate)
    else:
        batches = (batch.to(device) for batch in torch.split(images, batch_size))
        calibrate_activations_minmax(student, batches, calibrate)
    return len(images if ranges == "minmax" else first)


@torch.no_grad()
def calibrate_unit(
    unit: Unit, inputs: Iterable[Tensor], choose: Callable[[ActivationQuantizer, Tensor], tuple[Tensor, Tensor]]
) -> None:
    """Set each activation quantizer of a unit in one pass of these inputs, from its own input.

    A quantizer rounds as soon as it is set. If it is called several times, it sees all its inputs so far.
    """

    def gathering(quantizer: ActivationQuantizer) -> Observer:
        given: list[Tensor] = []

        def show(values: Tensor) -> None:
            given.append(values)
            whole = values if len(given) == 1 else torch.cat([each.flatten() for each in given])
            quantizer.set_parameters(*choose(quantizer, whole))

        return show

    with ExitStack() as hooks:
        for quantizer in unit.quantizers:
            hooks.enter_context(observed(quantizer, gathering(quantizer)))
        unit.run(*inputs)


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
def observed(module: nn.Module, observer: Callable[[Tensor], object]) -> Iterator[None]:
    """Show the input of a module, in float32 or better, before each of its calls, until the block ends.

    A quantizer on a logarithmic grid takes its top from the first values.
    """

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float() if inputs[0].dtype in HALVES else inputs[0]
        if isinstance(module, LogQuantizer) and not module.scale:
            module.set_top(top_search(values, module.bits))
        observer(values)  # return nothing, because a result would replace the input

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
