"""HPTQ: Hardware-Friendly Post Training Quantization (Habi et al., 2021), and its code, Sony's MCT."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor, fx, nn

    from zsqbench import CalibrationSet, Pretrained, StepContext

BOUNDS = {"relu6": 6.0, "sigmoid": 1.0, "hardsigmoid": 1.0, "softmax": 1.0, "tanh": 1.0}
"""Largest value of the activation functions that are bounded."""
SHIFTED = frozenset({"elu", "gelu", "hardswish", "leakyrelu", "prelu", "selu", "silu"})
"""Activation functions that are barely negative, in MCT v1.0.0 or in its current code."""
HOMOGENEOUS = frozenset({"identity", "relu", "relu6"})
"""Operators allowed between equalized layers: a positive factor passes through them (ReLU6: with its bound)."""


class HPTQ(zsqbench.Quantizer):
    """Uniform, symmetric quantizers with power-of-two thresholds, found without training.

    Activations have one threshold 2^k for each tensor: the one with the least error on a histogram of the float
    network's activations. They are signed where the histogram has negative mass. Weights have power-of-two or plain
    symmetric thresholds for each output channel. The steps after the activations are, in this order: shift negative
    correction, equalization of activation channels, weight thresholds, and bias correction. No labels and no gradients
    are used.

    The default preset is `released`: MCT 2.2.0 of August 2024. It is the library of DGH's authors at the time when they
    published HPTQ's numbers. Their Table 2 does not give version or target. Its weights are symmetric, not powers of
    two. Bounded activations take the range of their function, shifts need |min| / t <= 0.05, and nothing is equalized.
    `paper` follows the paper: powers of two for weights too, |min| / t <= 0.25, equalization. A scheme that demands
    powers of two (`pot`) gets them for weights in either preset.

    Deviations:

    - The paper removes outliers at a z-score that could not be looked up. Neither version of MCT removes them by
      default, so `z_threshold` is off in both presets. MCT's guidance is 5 to 20.
    - Searches start and end as in current MCT, in `paper` too: 20 thresholds for activations, and weights whose top
      level holds their maximum.
    - A shift is kept as the zero point of an otherwise power-of-two grid. This computes the same as MCT's explicit
      addition, padding and bias, borders included. MCT also rounds the activation to 16 bits before the addition; this
      is left out. MCT shifts through average pooling; this is not done here.
    - Both presets shift the functions of either version of MCT. `bounded: range` knows hard-sigmoid and tanh besides
      ReLU6, sigmoid and softmax.
    - Linear and residual collapsing (MCT 2) is not implemented. It never applies to ResNets and MobileNetV2.
    - The histogram of a batch is merged with the histogram of all earlier batches. MCT keeps all histograms and merges
      them at the end.
    - Bias correction takes the mean of all inputs. MCT 2 takes the mean of batch means, so it differs where the last
      batch is smaller. Older code of MCT (commit 5295b7b) takes a moving average of batch means.
    - Second moments are measured on one batch. The layers that they correct need no bias correction.
    """

    name = "hptq"
    memory_options = ("batch_size",)
    seeded = False
    weight_grids: ClassVar[tuple[Grid, ...]] = ("symmetric", "power_of_two")
    activation_grids: ClassVar[tuple[Grid, ...]] = ("power_of_two",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "weights": "power_of_two",
            "bounded": "search",
            "shift_negative": True,
            "shift_ratio": 0.25,
            "equalization": True,
        },
        "released": {
            "weights": "symmetric",
            "bounded": "range",
            "shift_negative": True,
            "shift_ratio": 0.05,
            "equalization": False,
        },
    }

    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    weights: Auto[Literal["power_of_two", "symmetric"]] = auto(
        description="thresholds of weights; unset: the kind that the scheme demands, else the preset's"
    )
    activation_error: Literal["mse", "mae", "lp", "kl", "no_clipping"] = Field(
        "mse", description="error that activation thresholds minimize; no_clipping: thresholds cover all values"
    )
    weight_error: Literal["mse", "mae", "lp", "no_clipping"] = Field(
        "mse", description="error that weight thresholds minimize; no_clipping: thresholds cover all values"
    )
    lp_power: float = Field(2.0, gt=0, description="power of the error lp")
    statistics: Literal["histogram", "exact"] = Field(
        "histogram",
        description="values over which errors are summed: a histogram, or all values in a second pass",
    )
    z_threshold: float | None = Field(
        None, gt=0, description="z-score above which activations are outliers; unset: no value is an outlier"
    )
    bounded: Auto[Literal["range", "search"]] = auto(
        description="thresholds of bounded functions (ReLU6, sigmoid, ...): from their range, or searched"
    )
    shift_negative: Auto[bool] = auto(description="shift barely negative activations into an unsigned grid")
    shift_ratio: Auto[float] = auto(gt=0, le=1, description="largest |min| / threshold that is shifted")
    shift_search: bool = Field(False, description="search threshold and shift by squared error on the histogram")
    equalization: Auto[bool] = auto(description="let each channel between two layers fill the threshold")
    bias_correction: bool = Field(True, description="correct biases by the mean error of the quantized weights")
    second_moment_correction: bool = Field(
        False, description="restore the mean and variance that batch normalisation gave each layer's output"
    )
    batch_size: int = Field(64, gt=0, description="images of a forward pass")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, except a grid of weights that the scheme demands."""
        found = super().automatic(network, scheme)
        demanded = None if scheme is None else scheme.placement.grid_of("weight")
        if scheme is None or demanded in self.weight_grids:
            return {**found, "weights": demanded}
        return found

    def rejects(self, scheme: Scheme) -> str | None:
        """Reject a demanded grid that is not available, and errors that need a histogram where statistics are exact."""
        if self.weights == "symmetric" and scheme.placement.grid_of("weight") == "power_of_two":
            return "the scheme demands the grid power_of_two, and its option weights is symmetric"
        if self.statistics == "exact" and (self.activation_error == "kl" or self.z_threshold is not None):
            return "activation_error kl and z_threshold need a histogram, and its option statistics is exact"
        return super().rejects(scheme)

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Insert quantizers, and the biases and movable bounds that corrections need."""
        from zsqbench.quant import Grids, add_biases, free_bounds, prepare

        self = self.resolved(teacher, scheme)
        student = prepare(teacher.module, scheme, teacher.input_size, Grids(self.weights, "power_of_two"))
        add_biases(student)
        if self.equalization:
            free_bounds(student)
        return student

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set thresholds and correct weights and biases. Raises ZSQBenchError without images."""
        import torch

        from zsqbench.quant import unpaired_layers

        self = self.resolved(teacher, ctx.scheme)
        batches = torch.split(self.images_of(data).to(ctx.device), self.batch_size)
        with torch.no_grad():
            means, shifts = self._calibrate_activations(student, batches)
            factors: dict[str, Tensor] = {}
            if self.equalization:
                if alone := unpaired_layers(student):
                    ctx.note(f"left out of equalization: {', '.join(alone)}")
                factors, changed = _equalize(student, batches, means)
                means |= changed
            restored: set[str] = set()
            if self.second_moment_correction:
                self._calibrate_weights(student)
                restored = _restore_moments(student, batches[0], factors)
                means, shifts = self._calibrate_activations(student, batches)
            self._calibrate_weights(student)
            if not self.bias_correction:
                means = {path: -shift for path, shift in shifts.items()}
            _correct_biases(student, {path: mean for path, mean in means.items() if path not in restored})

    def _calibrate_activations(
        self, student: "nn.Module", batches: "Sequence[Tensor]"
    ) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
        """Set the threshold of each activation from the float network.

        Returns the mean input of each layer, and the shift of each shifted activation.
        """
        from zsqbench.quant import (
            ExactThresholdSearch,
            RunningHistogram,
            activation_quantizers,
            activation_threshold,
            power_of_two,
        )

        histograms = {name: RunningHistogram() for name, _ in activation_quantizers(student)}
        means = {path: _RunningMean(layer) for path, layer in _layers(student).items()}
        _observe(student, batches, {name: _checked(name, seen.update) for name, seen in histograms.items()}, means)
        found, searches = {}, {}
        made_by = _operators(student)
        for name, quantizer in activation_quantizers(student):
            histogram = histograms[name].histogram
            if histogram is None:
                raise zsqbench.ZSQBenchError(f"the forward pass does not reach the activation {name!r}")
            bound = BOUNDS.get(made_by[name]) if self.bounded == "range" else None
            if bound is not None:
                threshold = power_of_two(quantizer.scale.new_tensor(bound))
                quantizer.set_threshold(threshold, signed=histogram.is_signed)
                continue
            kept = histogram if self.z_threshold is None else histogram.without_outliers(self.z_threshold)
            if not kept.counts.any():
                raise zsqbench.ZSQBenchError(
                    f"z_threshold {self.z_threshold} leaves nothing of activation {name!r}; MCT's guidance is 5 to 20"
                )
            if self.statistics == "exact" and self.activation_error != "no_clipping":
                error: Any = self.activation_error
                searches[name] = ExactThresholdSearch(histogram, quantizer.bits, error=error, p=self.lp_power)
            else:
                found[name] = activation_threshold(
                    kept, quantizer.bits, signed=histogram.is_signed, error=self.activation_error, p=self.lp_power
                )
        if searches:
            _observe(student, batches, {name: search.update for name, search in searches.items()}, {})
            found |= {name: search.best() for name, search in searches.items()}
        for name, quantizer in activation_quantizers(student):
            if name in found:
                quantizer.set_threshold(found[name].threshold.to(quantizer.scale), signed=found[name].signed)
        values = {path: mean.value() for path, mean in means.items()}
        shifts = self._shift_negative(student, histograms) if self.shift_negative else {}
        return values, {path: values[path].new_full(values[path].shape, shift) for path, shift in shifts.items()}

    def _shift_negative(self, student: Any, histograms: Any) -> dict[str, float]:
        """Move barely negative activations with a single reading layer into an unsigned grid. Returns shifts by layer.

        Where biases are not corrected, the effect of the weights' rounding on the shift stays in them, as in MCT.
        """
        from zsqbench.quant import activation_quantizers, best_shifted_grid, shifted_grid

        made_by, shifts = _operators(student), {}
        for name, quantizer in activation_quantizers(student):
            layer = _sole_reader(student, name) if made_by[name] in SHIFTED else None
            if layer is None:
                continue
            threshold, histogram = -quantizer.range()[0].item(), histograms[name].histogram
            if self.shift_search:
                shifted = best_shifted_grid(histogram, threshold, quantizer.bits, self.shift_ratio)
            else:
                shifted = shifted_grid(histogram.low, threshold, quantizer.bits, self.shift_ratio)
            if shifted is not None:
                like = quantizer.scale
                quantizer.set_parameters(like.new_tensor(shifted.scale), like.new_tensor(shifted.zero_point))
                if layer in _layers(student):
                    shifts[layer] = shifted.shift
        return shifts

    def _calibrate_weights(self, student: "nn.Module") -> None:
        from zsqbench.quant import power_of_two_weight_thresholds, quantized_layers, symmetric_weight_thresholds

        for _, layer in quantized_layers(student):
            quantizer = layer.weight_quantizer
            search = power_of_two_weight_thresholds if quantizer.grid == "power_of_two" else symmetric_weight_thresholds
            thresholds = search(layer.weight, quantizer.bits, quantizer.axis, error=self.weight_error, p=self.lp_power)
            quantizer.set_threshold(thresholds, signed=True)


class _RunningMean:
    """The mean over batches of a layer's input, for each of its input channels."""

    def __init__(self, layer: "nn.Module") -> None:
        import torch

        self.layer = layer
        self.total = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def update(self, values: "Tensor") -> None:
        """Add inputs [N, C, H, W] of a convolution or [..., C] of a linear layer."""
        import torch

        total = values.sum(_all_but_channels(self.layer, values), dtype=torch.float64)
        self.total = self.total + total
        self.count += values.numel() // total.numel()

    def value(self) -> "Tensor":
        """[C], float32."""
        return (self.total / max(1, self.count)).float()


def _all_but_channels(layer: "nn.Module", values: "Tensor") -> list[int]:
    """All dimensions of a layer's input or output except the channels, which come last in a linear layer's."""
    channels = values.dim() - 1 if hasattr(layer, "in_features") else 1
    return [dim for dim in range(values.dim()) if dim != channels]


def _layers(student: "nn.Module") -> "dict[str, Any]":
    from zsqbench.quant import quantized_layers

    return dict(quantized_layers(student))


def _observe(
    student: "nn.Module",
    batches: "Iterable[Tensor]",
    activations: "dict[str, Callable[[Tensor], Any]]",
    means: "dict[str, _RunningMean]",
) -> None:
    """Run the student in float, and pass the inputs of its quantizers and layers to these functions."""
    from contextlib import ExitStack

    from zsqbench.quant import activation_quantizers, observed, switched, weight_quantizers

    quantizers = dict(activation_quantizers(student))
    layers = _layers(student)
    watched: list[tuple[Any, Any]] = [(layers[path], mean.update) for path, mean in means.items()]
    watched += [(quantizers[name], update) for name, update in activations.items()]
    with ExitStack() as blocks:
        every = [*quantizers.values(), *(quantizer for _, quantizer in weight_quantizers(student))]
        blocks.enter_context(switched(every, enabled=False))
        for module, update in watched:
            blocks.enter_context(observed(module, update))
        for images in batches:
            student(images)


def _checked(name: str, update: "Callable[[Tensor], Any]") -> "Callable[[Tensor], None]":
    def checked(values: "Tensor") -> None:
        try:
            update(values)
        except ValueError as error:
            raise zsqbench.ZSQBenchError(f"activation {name!r} on the calibration images: {error}") from error

    return checked


def _producers(student: Any) -> "dict[str, fx.Node]":
    """The node that makes each quantized activation, then the quantizer's own node, by the tensor's name."""
    from zsqbench.quant import ActivationQuantizer

    calls = [node for node in student.graph.nodes if node.op == "call_module"]
    modules = {node: student.get_submodule(str(node.target)) for node in calls}
    return {module.name: node for node, module in modules.items() if isinstance(module, ActivationQuantizer)}


def _operators(student: Any) -> dict[str, str]:
    from zsqbench.quant.graph import operator

    return {name: operator(node.all_input_nodes[0]) for name, node in _producers(student).items()}


def _sole_reader(student: Any, name: str) -> str | None:
    """Path of the only layer that reads a quantized activation, or None."""
    from zsqbench.quant.graph import is_layer, readers

    found = list(readers(_producers(student)[name]))
    return str(found[0].target) if len(found) == 1 and is_layer(found[0]) else None


def _equalize(
    student: Any, batches: "Iterable[Tensor]", means: "dict[str, Tensor]"
) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """Let the channels between each pair of layers fill the threshold.

    Returns the factors of the first layers' outputs, and the changed mean inputs of the second layers.
    """
    import torch

    from zsqbench.quant import BoundedReLU, equalization_factors, layer_pairs, rescale

    pairs = [pair for pair in layer_pairs(student) if pair.quantizer is not None and pair.operator in HOMOGENEOUS]
    maxima: dict[str, Any] = {}

    def keep_maximum(name: str, layer: "nn.Module") -> "Callable[[Tensor], None]":
        def update(values: "Tensor") -> None:
            largest = values.abs().amax(_all_but_channels(layer, values))
            maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

        return update

    names = [pair.quantizer.name for pair in pairs if pair.quantizer is not None]
    firsts = [student.get_submodule(pair.first) for pair in pairs]
    _observe(student, batches, {name: keep_maximum(name, layer) for name, layer in zip(names, firsts, strict=True)}, {})
    scaled, changed = {}, {}
    for pair, name in zip(pairs, names, strict=True):
        quantizer: Any = pair.quantizer
        threshold = quantizer.threshold()
        factors = scaled[pair.first] = equalization_factors(maxima[name], threshold)
        rescale(student, pair, factors)
        if pair.activation is not None and pair.operator == "relu6":
            bounded: BoundedReLU = student.get_submodule(str(pair.activation.target))
            bounded.bound.copy_(threshold)
        if pair.second in means:
            changed[pair.second] = means[pair.second] * factors
    return scaled, changed


def _restore_moments(student: Any, images: "Tensor", factors: "dict[str, Tensor]") -> set[str]:
    """Give each layer's output the mean and deviation of its folded norm, times its equalization factors.

    A layer sees inputs that are already corrected, as with the re-inserted norms of MCT. Returns the layers' paths.
    """
    import torch

    from zsqbench.quant import activation_quantizers, second_moment_correction, switched
    from zsqbench.quant.graph import FOLDED

    folded, layers = student.meta.get(FOLDED, {}), _layers(student)
    paths = [path for path in folded if path in layers]
    found: dict[str, Any] = {}

    def correct(path: str) -> "Callable[..., Tensor]":
        norm: Any = folded[path]

        def hook(_: Any, __: Any, output: "Tensor") -> "Tensor":
            dims = [0, *range(2, output.dim())]
            variance, mean = torch.var_mean(output, dims, correction=0)
            factor = factors.get(path, torch.ones_like(mean))
            gamma = factor if norm.weight is None else factor * norm.weight
            beta = torch.zeros_like(mean) if norm.bias is None else factor * norm.bias
            scale, shift = found[path] = second_moment_correction(mean, variance, beta, gamma)
            shape = [1, -1, *[1] * (output.dim() - 2)]
            return output * scale.view(shape) + shift.view(shape)

        return hook

    handles = [layers[path].register_forward_hook(correct(path)) for path in paths]
    try:
        with switched([quantizer for _, quantizer in activation_quantizers(student)], enabled=False):
            student(images)
    finally:
        for handle in handles:
            handle.remove()
    for path, (scale, shift) in found.items():
        layer = layers[path]
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_(layer.bias * scale + shift)
    return set(found)


def _correct_biases(student: "nn.Module", means: "dict[str, Tensor]") -> None:
    """Subtract from each bias the effect of the weight's rounding error on these mean inputs."""
    from zsqbench.quant import corrected_bias, kernel_share

    layers = _layers(student)
    for path, mean in means.items():
        layer = layers[path]
        weights, groups = (layer.weight, layer.quantized_weight()), getattr(layer, "groups", 1)
        share = kernel_share(layer)
        layer.bias.copy_(corrected_bias(layer.bias, *weights, mean, groups=groups, kernel_share=share))


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `hptq`."""
    return [HPTQ]
