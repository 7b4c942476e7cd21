"""Means, variances and extremes of the tensors of a network, from only batch normalisation, as in DFQ.

A batch normalisation states the distribution of its output: N(beta, gamma^2) in each channel (Nagel et al., ICCV 2019,
section 4.2.1). For other tensors, moments are carried along the graph, as if each tensor were normal and the inputs of
an operator were independent.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    AVERAGE_POOLS,
    CONCATENATIONS,
    MULTIPLICATIONS,
    is_batch_norm,
    is_layer,
    operator,
    repeats_values,
    tensor_name,
)
from zsqbench.quant.grids.affine import along
from zsqbench.quant.grids.fake_quant import ActivationQuantizer

_SUMS = frozenset({"add", "sub"})
_FUNCTIONS = ACTIVATIONS | MULTIPLICATIONS | _SUMS | {"abs", "div", "neg", "pow", "sqrt", "square", "truediv"}
_AVERAGES = AVERAGE_POOLS | {"mean", "interpolate"}
_CHANNELS = 1
_INTERVALS = 256
_REACH = 8.0
"""The ends of the integrals over a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Moments:
    """Mean, variance and expected bounds of each value of a tensor, all with the tensor's shape."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, variance: Tensor, sigmas: float) -> "Moments":
        """A normal distribution that ends `sigmas` standard deviations from its mean."""
        reach = sigmas * variance.sqrt()
        return cls(mean, variance, mean - reach, mean + reach)

    @classmethod
    def uniform(cls, low: Tensor, high: Tensor) -> "Moments":
        """A uniform distribution from low to high."""
        return cls((low + high) / 2, (high - low).square() / 12, low, high)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Moments":
        """The four tensors, each changed by the function."""
        return Moments(*map(change, (self.mean, self.variance, self.low, self.high)))

    def within(self, low: Tensor, high: Tensor) -> "Moments":
        """The moments with narrower bounds."""
        return Moments(self.mean, self.variance, torch.maximum(self.low, low), torch.minimum(self.high, high))


@torch.no_grad()
def input_moments(
    student: fx.GraphModule, images: Moments, norms: Mapping[str, tuple[Tensor, Tensor]], sigmas: float
) -> dict[nn.Module, list[Moments]]:
    """The moments of the inputs of each layer and each activation quantizer of a student, for each call.

    `images` are moments [1, C, 1, 1] of the network's input. `norms` are mean and deviation [C] of the output of a
    layer with a folded batch normalisation, by its path. The student's quantizers are still off. Besides normal
    distributions behind normalisations, these rules hold. Functions of one tensor are integrated numerically. Sums and
    products are of independent tensors. Layers without a norm add up independent inputs. Average pooling keeps the
    variance, which is then too large. Max-pooling keeps all moments. Softmax is between zero and one. Raises
    ZSQBenchError for any other operator.
    """
    propagation = _Propagation(student, images, norms, sigmas)
    propagation.run()
    return propagation.found


class _Propagation(fx.Interpreter):
    """Runs a graph on moments instead of tensors.

    Moments have the full shape of the tensors, so that operators that move values also move moments. An expanded
    dimension means equal values, and takes no memory.
    """

    def __init__(
        self, student: fx.GraphModule, images: Moments, norms: Mapping[str, tuple[Tensor, Tensor]], sigmas: float
    ) -> None:
        super().__init__(student)
        self.extra_traceback = False  # otherwise torch adds it to the line of an error
        self.found: dict[nn.Module, list[Moments]] = {}
        self._images, self._norms, self._sigmas = images, norms, sigmas

    def run_node(self, n: fx.Node) -> Any:
        given = [self.env[source] for source in n.all_input_nodes]
        if n.op == "placeholder":
            return self._images.each(lambda values: values.expand(n.meta["shape"]))
        if n.op == "output":
            return None
        if n.op == "call_module" and (is_layer(n) or isinstance(self.fetch_attr(str(n.target)), ActivationQuantizer)):
            values = given[0] if isinstance(given[0], Moments) else _constant(given[0])
            self.found.setdefault(self.fetch_attr(str(n.target)), []).append(values)
            return self._layer(n, values) if is_layer(n) else values
        if not any(isinstance(value, Moments) for value in given):
            return super().run_node(n)
        if not n.meta["carries_values"]:  # a shape, for instance
            return self._call(n, lambda moments: moments.mean)
        return self._operator(n, [value for value in given if isinstance(value, Moments)])

    def _operator(self, n: fx.Node, given: list[Moments]) -> Moments:
        kind = operator(n)
        if is_batch_norm(n):
            return self._normalized(n, *norm_moments(self.fetch_attr(str(n.target))))
        if repeats_values(n) or kind in CONCATENATIONS | _AVERAGES:
            return self._moved(n)
        if kind in _FUNCTIONS and len(given) == 1:
            return self._function(n, given[0])
        if kind == "softmax":
            mean = self._call(n, lambda moments: moments.mean)
            return Moments(mean, mean * (1 - mean), torch.zeros_like(mean), torch.ones_like(mean))
        if kind in MULTIPLICATIONS | _SUMS and len(given) == len(n.args) and not n.kwargs:
            return self._combined(n, *given)
        raise ZSQBenchError(
            f"the moments of tensor {tensor_name(n)!r} cannot be derived from batch normalisation: no rule carries "
            f"them through {kind!r}; take a quantizer that calibrates on images, such as rtn or hptq"
        )

    def _layer(self, n: fx.Node, x: Moments) -> Moments:
        if str(n.target) in self._norms:
            return self._normalized(n, *self._norms[str(n.target)])
        layer: Any = self.fetch_attr(str(n.target))
        squared = {"weight": layer.weight.square()}
        if layer.bias is not None:
            squared["bias"] = torch.zeros_like(layer.bias)

        def given(values: Tensor) -> Any:  # a transposed convolution may also get an output size
            read = n.all_input_nodes[0]
            return fx.node.map_arg((n.args, n.kwargs), lambda source: values if source is read else self.env[source])

        variance = torch.func.functional_call(layer, squared, *given(x.variance))
        args, kwargs = given(x.mean)
        mean = layer(*args, **kwargs)
        return Moments.normal(mean.float(), variance.float(), self._sigmas)  # in float32 under autocast, too

    def _normalized(self, n: fx.Node, mean: Tensor, deviation: Tensor) -> Moments:
        shape = n.meta["shape"]
        mean, deviation = along(mean, _CHANNELS, len(shape)), along(deviation, _CHANNELS, len(shape))
        return Moments.normal(mean, deviation.square(), self._sigmas).each(lambda values: values.expand(shape))

    def _moved(self, n: fx.Node) -> Moments:
        # if the result is several tensors, as of `chunk`, each of the four is several, and `getitem` takes one of each
        return Moments(
            self._call(n, lambda moments: moments.mean),
            self._call(n, lambda moments: moments.variance, constants=_zeros),
            self._call(n, lambda moments: moments.low),
            self._call(n, lambda moments: moments.high),
        )

    def _function(self, n: fx.Node, x: Moments) -> Moments:
        """Integrate the function over a normal distribution, and find its extremes between low and high."""
        mean, variance, low, high = (_without_copies(values) for values in (x.mean, x.variance, x.low, x.high))
        deviation = variance.sqrt()

        def function(values: Tensor) -> Tensor:
            result = cast("Tensor", self._call(n, lambda _: values.clone()))  # the function may work in place
            if result.isfinite().all():
                return result
            inside = torch.minimum(torch.maximum(values, low), high)  # a root has no values below zero
            return cast("Tensor", self._call(n, lambda _: inside))

        centre = function(mean)
        first = second = torch.zeros_like(centre)
        ends = [function(low)] * 2
        for k, (z, weight) in enumerate(_NORMAL):
            difference = function(mean + z * deviation) - centre
            first, second = first + weight * difference, second + weight * difference.square()
            between = function(torch.lerp(low, high, k / _INTERVALS))
            ends = [torch.minimum(ends[0], between), torch.maximum(ends[1], between)]
        result = Moments(centre + first, (second - first.square()).clamp(min=0), *ends)
        return result.each(lambda values: values.expand(n.meta["shape"]))

    def _combined(self, n: fx.Node, x: Moments, y: Moments) -> Moments:
        """A sum, difference or product of independent tensors."""
        x, y = x.each(_without_copies), y.each(_without_copies)
        if operator(n) in MULTIPLICATIONS:
            mean = x.mean * y.mean
            variance = x.variance * y.variance + x.variance * y.mean.square() + y.variance * x.mean.square()
            ends = [x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high]
            low, high = torch.stack([end.expand_as(mean) for end in ends]).aminmax(dim=0)
        else:
            if operator(n) == "sub":
                y = Moments(-y.mean, y.variance, -y.high, -y.low)
            mean, variance, low, high = x.mean + y.mean, x.variance + y.variance, x.low + y.low, x.high + y.high
        result = Moments.normal(mean, variance, self._sigmas).within(low, high)
        return result.each(lambda values: values.expand(n.meta["shape"]))

    def _call(
        self, n: fx.Node, choose: Callable[[Moments], Any], constants: Callable[[Any], Any] = lambda value: value
    ) -> Any:
        """Run the operator of a node on a tensor instead of moments."""

        def argument(source: fx.Node) -> Any:
            value = self.env[source]
            return choose(value) if isinstance(value, Moments) else constants(value)

        args, kwargs = fx.node.map_arg((n.args, n.kwargs), argument)
        return getattr(self, n.op)(n.target, args, kwargs)


def norm_moments(norm: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of a batch normalisation's output: beta and |gamma| sqrt(var / (var + eps)).

    DFQ takes |gamma|. For a channel that hardly varies, such as a dead channel, eps makes the difference.
    """
    deviation = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.detach().abs()
    deviation = deviation * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    return (torch.zeros_like(deviation) if norm.bias is None else norm.bias.detach()), deviation


def _constant(values: Tensor) -> Moments:
    return Moments(values, torch.zeros_like(values), values, values)


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _without_copies(values: Tensor) -> Tensor:
    """One of the values that an expanded dimension repeats. Channels stay, because a function may differ by channel."""
    for dim, stride in enumerate(values.stride()):
        if stride == 0 and dim != _CHANNELS:
            values = values.narrow(dim, 0, 1)
    return values


def _normal_points() -> list[tuple[float, float]]:
    # By trapezoids: at the kink of ReLU Gauss-Hermite needs thousands of points to be as close (1.3e-4 deviations).
    points = [_REACH * (2 * k / _INTERVALS - 1) for k in range(_INTERVALS + 1)]
    densities = [math.exp(-(z**2) / 2) for z in points]
    return [(z, density / sum(densities)) for z, density in zip(points, densities, strict=True)]


_NORMAL = _normal_points()
