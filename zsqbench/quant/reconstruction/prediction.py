"""Predictions of a network that is quantized up to and including a unit, for losses on predictions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.units import Unit
from zsqbench.quant.ranges.calibration import switched
from zsqbench.quant.reconstruction.activation_cache import ActivationCache, LiveTensors, Memory, batches
from zsqbench.quant.reconstruction.propagation import in_float, quantizers_of


@dataclass
class Prediction:
    """The logits of a classifier on calibration images: quantized up to and including a unit, or in float.

    All methods raise ZSQBenchError where the network is not a classifier with one output [N, classes].
    """

    unit: Unit
    later: Sequence[Unit]
    inputs: LiveTensors
    """The values that are live before the unit, in the quantized network."""
    plain: LiveTensors
    """The same values in the float network."""
    batch_size: int
    memory: Memory
    loss: str
    """Name of the loss, for error messages."""

    def quantized(self, index: Tensor | slice, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits [N, classes] for these outputs of the unit, with everything behind it float; differentiable."""
        wanted = {name for unit in self.later for name in unit.inputs}
        values = {name: cache.read(index) for name, cache in self.inputs.items() if name in wanted}
        with self._float_behind():
            # copies, because later layers may work in place
            return self._logits(values | {name: output.clone() for name, output in outputs.items()})

    def in_float(self, index: Tensor | slice) -> Tensor:
        """The logits [N, classes] of the float network, computed once for all images."""
        return self._float_logits.read(index)

    def fisher_weights(self, names: Iterable[str]) -> dict[str, ActivationCache]:
        """|g| + 1 for each element of these outputs; g is their gradient of KL(float || quantized logits)."""
        caches = {name: ActivationCache(self._count, self.memory) for name in names}
        with self._float_behind():
            for part in batches(self._count, self.batch_size):
                with torch.no_grad():
                    values = self._following(self.inputs, part)
                    with in_float(self.unit):
                        expected = self._logits(self._following(self.plain, part))
                outputs = {name: values[name].float().requires_grad_() for name in caches}
                logits = self._logits(values | outputs)
                divergence = functional.kl_div(logits.log_softmax(1), expected.softmax(1), reduction="batchmean")
                tensors = list(outputs.values())
                if divergence.requires_grad:
                    gradients = torch.autograd.grad(divergence, tensors, materialize_grads=True)
                else:  # behind the unit only indices depend on it
                    gradients = tuple(map(torch.zeros_like, tensors))
                for cache, gradient in zip(caches.values(), gradients, strict=True):
                    cache.append(gradient.abs().add_(1))
        return caches

    @cached_property
    def _float_logits(self) -> ActivationCache:
        cache = ActivationCache(self._count, self.memory)
        with torch.no_grad(), self._float_behind(), in_float(self.unit):
            for part in batches(self._count, self.batch_size):
                cache.append(self._logits(self._following(self.plain, part)))
        return cache

    @property
    def _count(self) -> int:
        return next(iter(self.inputs.values())).count

    @contextmanager
    def _float_behind(self) -> Iterator[None]:
        own = {layer.weight_quantizer for _, layer in self.unit.layers}  # a later unit may call one of these layers
        later = [quantizer for unit in self.later for quantizer in quantizers_of(unit) if quantizer not in own]
        with switched(later, enabled=False):
            yield

    def _following(self, live: LiveTensors, part: slice) -> dict[str, Tensor]:
        values = {name: cache.read(part) for name, cache in live.items()}
        return values | self.unit.run(*(values[name] for name in self.unit.inputs))

    def _logits(self, values: dict[str, Tensor]) -> Tensor:
        for unit in self.later:
            values = values | unit.run(*(values[name] for name in unit.inputs))
        read = {name for unit in self.later for name in unit.inputs}
        ends = [name for unit in (self.unit, *self.later) for name in unit.outputs if name not in read]
        logits = values[ends[-1]]
        if logits.dim() != 2 or len(ends) != 1:  # noqa: PLR2004 - images and classes
            raise ZSQBenchError(
                f"{self.loss} needs a classifier, with one output [N, classes]; take a loss on the outputs of units, "
                "such as mse"
            )
        return logits.float()
