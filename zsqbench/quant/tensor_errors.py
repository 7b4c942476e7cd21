"""The error of each quantized tensor of a network: the total error, and the error of its own rounding."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.compat import tree_leaves
from zsqbench.quant.artifact import effective_map
from zsqbench.quant.counterpart import weight_of
from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import QuantizedLayer, TensorQuantizer
from zsqbench.quant.ranges.calibration import switched
from zsqbench.quant.student import QUANTIZERS, activation_quantizers, quantized_layers, weight_quantizers
from zsqbench.scheme import FLOAT_BITS, TensorError

BATCH = 8
"""Images of a pass. All their float activations are kept."""

NO_ERROR = "infinite: there is no error"
SILENT = "the float tensor is zero"
NOT_FINITE = "its values are not finite"
NO_COUNTERPART = "the float network has no such tensor"
NOT_REACHED = "no image reaches it"
OFF = "its quantizer is off"

_ENDINGS = {"set": "", "real": "_real"}
"""The suffixes of names of numbers, for calibration images and for real images."""


@dataclass(frozen=True)
class NetworkErrors:
    """The errors of a quantized network."""

    tensors: list[TensorError]
    """The tensors in network order. A weight is at the call of its layer."""
    outputs: float | None
    """Signal to error of the outputs on the calibration images, in dB."""
    outputs_real: float | None
    """Signal to error of the outputs on real images, in dB."""
    absent: Mapping[str, str]
    """Why a number is None."""


@torch.no_grad()
def measure_errors(
    student: nn.Module,
    reference: nn.Module,
    images: Tensor | None,
    real: Tensor | None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NetworkErrors:
    """Compare each quantized tensor of a student with the same tensor of the float network.

    The reference is a student that was prepared in the same way, with all quantizers off. It computes the same as the
    float network, has the same folded batch normalisations as the student, and its tensors have the student's names. A
    shift of barely negative activations is a zero point here, and needs no other reference. For rescaled channels, call
    `follow_rescaling` before. Biases that a method moves (absorption, correction) have no counterpart: their change
    counts as error, or reduces the error.

    Images are [N, C, H, W] in the network's space, on any device. They pass in batches, and only sums are kept. For a
    trained student, the error of a weight is its distance from the float weight, so it includes the training.
    """
    passes = [-(-len(each) // BATCH) for each in (images, real) if each is not None]
    steps = iter(range(1, sum(passes) + 1))
    off = [quantizer for _, quantizer in (*weight_quantizers(reference), *activation_quantizers(reference))]
    found: dict[str, _Pass] = {}
    with switched(off, enabled=False):
        for name, given in zip(_ENDINGS, (images, real), strict=True):
            if given is not None:
                found[name] = _passes(student, reference, given, lambda: progress(next(steps), sum(passes)))
        weights = {path: _weight_error(layer, reference, path) for path, layer in quantized_layers(student)}
    quantizers = dict(activation_quantizers(student))
    tensors = []
    for tensor in effective_map(student):
        if tensor.bits != FLOAT_BITS:
            is_weight = tensor.kind == "weight"
            numbers = weights[tensor.name] if is_weight else _activation_error(quantizers[tensor.name], found)
            error = TensorError(tensor.kind, tensor.name, tensor.role, tensor.bits, absent=numbers.absent)
            tensors.append(replace(error, **cast("Any", numbers.values)))
    order = _network_order(student)
    tensors.sort(key=lambda tensor: order.get((tensor.kind, tensor.name), len(order)))
    outputs = _Numbers()
    for key, each in found.items():
        outputs.decibels(f"outputs{_ENDINGS[key]}", each.outputs)
    measured = outputs.values.get("outputs"), outputs.values.get("outputs_real")
    return NetworkErrors(tensors, *measured, outputs.absent)


@dataclass
class _Ratio:
    """Signal and error so far, as sums of squares."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, exact: Tensor, found: Tensor) -> None:
        """Add a tensor and its quantized values."""
        exact = exact.double()
        self.signal += exact.square().sum().item()
        self.error += (exact - found.double()).square_().sum().item()


@dataclass
class _Numbers:
    """Numbers by name, and why a number is None."""

    values: dict[str, float | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def decibels(self, name: str, ratio: _Ratio) -> None:
        """10 log10(signal / error)."""
        why = None
        if not (math.isfinite(ratio.signal) and math.isfinite(ratio.error)):
            why = NOT_FINITE
        elif not ratio.error:
            why = NO_ERROR
        elif not ratio.signal:
            why = SILENT
        if why is None:
            self.values[name] = 10 * math.log10(ratio.signal / ratio.error)
        else:
            self.lacks(why, name)

    def lacks(self, why: str, *names: str) -> None:
        """Note why numbers are None."""
        for name in names:
            self.values[name] = None
            self.absent[name] = why

    def grid(self, use: "_GridUse | None", clipped: str = "clipped") -> None:
        """Add the share of clipped values, under this name, and of used codes."""
        if use is None:
            self.lacks(OFF, clipped, "codes")
            return
        self.values[clipped] = use.clipped / use.count
        self.values["codes"] = use.used.double().mean().item()


class _GridUse:
    """The use of a grid, so far."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        self.quantizer = quantizer
        self.top = levels(quantizer.bits)
        self.clipped = self.count = 0
        self.used = torch.zeros(self.top + 1, dtype=torch.bool, device=quantizer.scale.device)
        """For each code: true if a value has it."""

    def add(self, x: Tensor) -> None:
        """Add values that are rounded to the grid."""
        codes = self.quantizer.unclamped_codes(x.float())
        self.clipped += int(((codes < 0) | (codes > self.top)).sum())
        self.count += codes.numel()
        self.see(codes.nan_to_num_().clamp_(0, self.top))

    def see(self, codes: Tensor) -> None:
        """Add codes 0 .. top."""
        self.used |= torch.bincount(codes.flatten().long(), minlength=self.top + 1) > 0


@dataclass
class _Activation:
    """The error of an activation, so far."""

    accumulated: _Ratio = field(default_factory=_Ratio)
    own: _Ratio = field(default_factory=_Ratio)
    use: _GridUse | None = None
    has_counterpart: bool = True


@dataclass
class _Pass:
    """All activations and the outputs over some images."""

    activations: dict[str, _Activation] = field(default_factory=dict)
    outputs: _Ratio = field(default_factory=_Ratio)


def _passes(student: nn.Module, reference: nn.Module, images: Tensor, tell: Callable[[], None]) -> _Pass:
    found = _Pass()
    device = next(student.parameters(), next(student.buffers(), images)).device
    for batch in torch.split(images, BATCH):
        pixels = batch.to(device)
        with _kept(reference) as exact:
            expected = reference(pixels.clone())  # a network may work in place on what it is given
        with _compared(student, exact, found.activations):
            outputs = student(pixels.clone())
        for ours, theirs in zip(_tensors(outputs), _tensors(expected), strict=True):
            found.outputs.add(theirs, ours)
        tell()
    return found


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@contextmanager
def _kept(reference: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """The inputs of each activation quantizer, one for each call, by name."""
    given: dict[str, list[Tensor]] = {}

    def keeping(quantizer: TensorQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: given.setdefault(quantizer.name, []).append(inputs[0])

    with ExitStack() as hooks:
        for _, quantizer in activation_quantizers(reference):
            hooks.callback(quantizer.register_forward_pre_hook(keeping(quantizer)).remove)
        yield given


@contextmanager
def _compared(student: nn.Module, exact: Mapping[str, list[Tensor]], found: dict[str, _Activation]) -> Iterator[None]:
    """Add the inputs and outputs of each activation quantizer, beside the tensors of the float network."""
    calls: dict[str, int] = {}

    def compare(quantizer: TensorQuantizer, x: Tensor, output: Tensor) -> None:
        name = quantizer.name
        call = calls[name] = calls.get(name, -1) + 1
        activation = found.setdefault(name, _Activation())
        theirs = exact.get(name, [])
        if call < len(theirs) and theirs[call].shape == output.shape:
            activation.accumulated.add(theirs[call], output)
        else:
            activation.has_counterpart = False
        activation.own.add(x, output)
        if quantizer.enabled:
            activation.use = activation.use or _GridUse(quantizer)
            activation.use.add(x)

    def comparing(quantizer: TensorQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: compare(quantizer, inputs[0], output)

    with ExitStack() as hooks:
        for _, quantizer in activation_quantizers(student):
            hooks.callback(quantizer.register_forward_hook(comparing(quantizer)).remove)
        yield


def _activation_error(quantizer: TensorQuantizer, found: Mapping[str, _Pass]) -> _Numbers:
    """The numbers of an activation. Numbers of missing images are None, and the caller knows why."""
    numbers = _Numbers()
    for key, ending in reversed(_ENDINGS.items()):  # the codes of the calibration set come last and count
        if key in found:
            activation = found[key].activations.get(quantizer.name)
            _add(numbers, activation, ending, enabled=quantizer.enabled)
    return numbers


def _add(numbers: _Numbers, activation: _Activation | None, ending: str, *, enabled: bool) -> None:
    """The numbers of an activation on one set of images."""
    accumulated, own, clipped = (f"{name}{ending}" for name in ("sqnr", "own", "clipped"))
    if activation is None:
        numbers.lacks(NOT_REACHED, accumulated, own, clipped, "codes")
        return
    if activation.has_counterpart:
        numbers.decibels(accumulated, activation.accumulated)
    else:
        numbers.lacks(NO_COUNTERPART, accumulated)
    numbers.decibels(own, activation.own)
    numbers.grid(activation.use if enabled else None, clipped)


def _weight_error(layer: QuantizedLayer, reference: nn.Module, path: str) -> _Numbers:
    """The numbers of a weight: the student's weight beside the float weight."""
    numbers, quantizer = _Numbers(), layer.weight_quantizer
    exact, found = weight_of(reference.get_submodule(path)), layer.quantized_weight()
    ratio = _Ratio()
    ratio.add(exact, found)
    numbers.decibels("sqnr", ratio)
    numbers.decibels("own", ratio)
    use = _GridUse(quantizer) if quantizer.enabled else None
    if use is not None:
        use.add(exact)
        use.used.zero_()
        # its present codes, which a method may have chosen
        use.see(layer.weight_codes if layer.is_finalized else quantizer.codes(layer.weight))
    numbers.grid(use)
    return numbers


def _network_order(student: nn.Module) -> dict[tuple[str, str], int]:
    """The position of each tensor at its first computation. Without a graph, the order of the tensor map."""
    if not isinstance(student, fx.GraphModule):
        return {(tensor.kind, tensor.name): place for place, tensor in enumerate(effective_map(student))}
    order: dict[tuple[str, str], int] = {}
    for place, node in enumerate(student.graph.nodes):
        if node.op == "call_module":
            path = str(node.target)
            is_quantizer = path.startswith(f"{QUANTIZERS}.")
            name = path.removeprefix(f"{QUANTIZERS}.")
            order.setdefault(("activation" if is_quantizer else "weight", name), place)
    return order
