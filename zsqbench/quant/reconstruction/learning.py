"""Learning one unit: the rounding of its weights and the step sizes of its activations, by gradient descent."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.context import LearningContext
from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, QuantizedLayer, TensorQuantizer, WeightQuantizer
from zsqbench.quant.ranges.calibration import switched
from zsqbench.quant.reconstruction.activation_cache import ActivationCache, LiveTensors, Memory, batches
from zsqbench.quant.reconstruction.draws import draw, keep_mask
from zsqbench.quant.reconstruction.losses import reconstruction_loss
from zsqbench.quant.reconstruction.propagation import in_float, push, quantized, quantizers_of
from zsqbench.quant.reconstruction.rounding import SoftRounding
from zsqbench.quant.reconstruction.stage import Draws, Stage

POINTS = 200
"""Points of a curve that are kept for each unit."""

SMALLEST_STEP = 1e-3
"""A learned scale stays above this part of what it was at first: Adam could take it through zero."""


@dataclass
class Learning:
    """One unit in one stage, with what it reads and is to give. Its loss is that of the stage, over all images."""

    unit: Unit
    stage: Stage
    ctx: LearningContext
    memory: Memory
    inputs: LiveTensors
    """What the unit reads."""
    plain: LiveTensors
    """The same values of the float network."""
    targets: Mapping[str, ActivationCache]
    """What its outputs are to be: what they are in the float network."""
    layers: Sequence[QuantizedLayer]
    """Those whose rounding is learned."""
    later: Sequence[Unit]
    curve: str
    """Name of the stage and the unit, for the log."""
    tick: Callable[[], None]
    """Called after each iteration."""

    def run(self, needed: set[str]) -> tuple[float, float, dict[str, ActivationCache]]:
        """Learn, and keep what was learned unless it is worse.

        Returns the loss before and after, and what is live and needed behind the unit.
        """
        rounded = [layer.weight_quantizer for layer in self.layers]
        steps = [quantizer.scale.clone() for quantizer in self._learned_quantizers()]
        with quantized(self.unit, self.stage):
            soft = self._soften()
            weights = self._fisher_weights() if self.stage.fisher else None
            self._use(rounded)
            before, _ = self._loss(weights, set())
            self._use(soft)
            self._optimize(soft, weights)
            self._harden(soft)
            after, following = self._loss(weights, needed)
            if not after <= before:
                self._use(rounded)
                for quantizer, step in zip(self._learned_quantizers(), steps, strict=True):
                    quantizer.set_parameters(step, quantizer.zero_point)
                self.ctx.note(
                    f"{self.curve}: what was there is kept, for what was learned is worse on the calibration images: "
                    f"{after:.4g} against {before:.4g}"
                )
                del following  # before its place is needed again
                after, following = self._loss(weights, needed)
        return before, after, following

    def _learned_quantizers(self) -> list[ActivationQuantizer]:
        return [quantizer for quantizer in self.unit.quantizers if quantizer.enabled and self.stage.step_sizes]

    def _use(self, quantizers: Sequence[WeightQuantizer]) -> None:
        for layer, quantizer in zip(self.layers, quantizers, strict=True):
            layer.weight_quantizer = quantizer

    def _soften(self) -> list[SoftRounding]:
        learn_scale = self.stage.rounding is not None and self.stage.rounding.scale_lr is not None
        soft = [SoftRounding(layer.weight_quantizer, layer.weight, learn_scale=learn_scale) for layer in self.layers]
        self._use(soft)
        return soft

    @property
    def _count(self) -> int:
        return next(iter(self.targets.values())).count

    def _loss(self, weights: LiveTensors | None, needed: set[str]) -> tuple[float, dict[str, ActivationCache]]:
        """The loss on all images and, of the same pass, what is needed behind the unit."""
        total = 0.0

        def add(outputs: Mapping[str, Tensor], part: slice) -> None:
            nonlocal total
            total += self._distance(outputs, part, weights).item() * (part.stop - part.start)

        following = push(self.unit, self.inputs, needed, self.stage.batch_size, self.memory, add)
        if not math.isfinite(total):
            raise self._diverged()
        return total / self._count, following

    def _distance(self, outputs: Mapping[str, Tensor], index: Tensor | slice, weights: LiveTensors | None) -> Tensor:
        """The loss of a batch, summed over the outputs that are reconstructed."""
        losses = []
        for name, target in self.targets.items():
            weight = None if weights is None else weights[name].read(index)
            loss = reconstruction_loss(outputs[name], target.read(index), self.stage.power, self.stage.fisher, weight)
            losses.append(loss)
        return torch.stack(losses).sum()

    def _optimize(self, soft: Sequence[SoftRounding], weights: LiveTensors | None) -> None:
        stage, iterations = self.stage, self.stage.iterations
        steps = [quantizer.scale for quantizer in self._learned_quantizers()]
        scales = [*steps, *(rounding.scale for rounding in soft if rounding.scale.requires_grad)]
        lowest = [SMALLEST_STEP * scale.detach() for scale in scales]
        groups = self._parameters(soft, steps)
        if not groups:  # its quantizers are not calibrated, or its layers were learned in another unit
            for _ in range(iterations):
                self.tick()
            return
        optimizer = torch.optim.Adam(groups, fused=True)
        run = self.ctx.compile(self.unit.module)
        indices = draw(self._count, stage.batch_size, self._draws(), self.ctx)
        every = max(1, iterations // POINTS)
        with contextlib.ExitStack() as until_learned:
            for step in steps:
                until_learned.callback(step.requires_grad_(True).requires_grad_, False)
            sizes = self._watch(until_learned)
            for iteration, index in zip(range(1, iterations + 1), indices, strict=False):
                outputs = dict(zip(self.unit.outputs, run(*self._drawn_inputs(index)), strict=True))
                loss = self._distance(outputs, index, weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._adjust_gradients(soft, sizes, iteration)
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"]((iteration - 1) / iterations)
                optimizer.step()
                sizes.clear()
                with torch.no_grad():
                    for scale, floor in zip(scales, lowest, strict=True):
                        torch.maximum(scale, floor, out=scale)
                if iteration % every == 0:
                    self.ctx.log(self.curve, loss, iteration)
                self.tick()
        learned = [parameter for group in groups for parameter in group["params"]]
        if not all(bool(parameter.isfinite().all()) for parameter in learned):
            raise self._diverged()

    def _parameters(self, soft: Sequence[SoftRounding], steps: Sequence[Tensor]) -> list[dict[str, Any]]:
        rounding, step_sizes = self.stage.rounding, self.stage.step_sizes
        groups = []
        if rounding and soft:
            groups.append(_group([quantizer.logits for quantizer in soft], rounding.lr, is_annealed=False))
            if rounding.scale_lr is not None:
                groups.append(_group([quantizer.scale for quantizer in soft], rounding.scale_lr, is_annealed=True))
        if step_sizes and steps:
            groups.append(_group(steps, step_sizes.lr, is_annealed=True))
        return groups

    def _adjust_gradients(
        self, soft: Sequence[SoftRounding], sizes: Mapping[TensorQuantizer, int], iteration: int
    ) -> None:
        rounding = self.stage.rounding
        beta = rounding.annealing(iteration, self.stage.iterations) if rounding else None
        if rounding and beta is not None:
            for quantizer in soft:
                quantizer.add_regularizer_gradient(rounding.regularizer, beta)
        for step, size in sizes.items():
            if step.scale.grad is not None:
                step.scale.grad.div_(math.sqrt(size * levels(step.bits)))

    def _watch(self, until_learned: contextlib.ExitStack) -> dict[TensorQuantizer, int]:
        """Drop quantization at random behind the quantizers, and note the sizes of what they round, where wanted."""
        sizes: dict[TensorQuantizer, int] = {}
        scales_gradients = self.stage.step_sizes is not None and self.stage.step_sizes.lsq

        def hook(quantizer: TensorQuantizer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if scales_gradients:
                sizes[quantizer] = sizes.get(quantizer, 0) + output.numel()  # a shared head is called for each level
            return self._mixed(output, inputs[0]) if self.stage.drop else output

        if scales_gradients or self.stage.drop:
            for quantizer in self.unit.quantizers:
                until_learned.callback(quantizer.register_forward_hook(hook).remove)
        return sizes

    def _read(self, live: LiveTensors, index: Tensor | slice) -> list[Tensor]:
        return [live[name].read(index) for name in self.unit.inputs]

    def _drawn_inputs(self, index: Tensor) -> list[Tensor]:
        values = self._read(self.inputs, index)
        if self.stage.source != "mixed":
            return values
        return [self._mixed(*pair) for pair in zip(values, self._read(self.plain, index), strict=True)]

    def _mixed(self, rounded: Tensor, plain: Tensor) -> Tensor:
        return torch.where(keep_mask(rounded.shape, 1 - self.stage.drop, self.ctx), rounded, plain)

    def _draws(self) -> Draws:
        return (self.stage.layer_draws if self.unit.kind == "layer" else None) or self.stage.draws

    def _harden(self, soft: Sequence[SoftRounding]) -> None:
        for layer, rounding in zip(self.layers, soft, strict=True):
            rounding.scale.requires_grad_(False)
            layer.choose(rounding.hard_codes())

    def _fisher_weights(self) -> dict[str, ActivationCache]:
        """|g| + 1 for each element of the unit's outputs, g being the gradient there of KL(float || quantized logits).

        The network is quantized up to and including this unit, whose weights are still soft, and float behind it.
        """
        caches = {name: ActivationCache(self._count, self.memory) for name in self.targets}
        own = {layer.weight_quantizer for _, layer in self.unit.layers}  # a later unit may call one of these layers
        later = [quantizer for unit in self.later for quantizer in quantizers_of(unit) if quantizer not in own]
        with switched(later, enabled=False):
            for part in batches(self._count, self.stage.batch_size):
                with torch.no_grad():
                    values = self._following(self.inputs, part)
                    with in_float(self.unit):
                        expected = self._logits(self._following(self.plain, part))
                outputs = {name: values[name].float().requires_grad_() for name in caches}
                logits = self._logits(values | outputs)
                divergence = functional.kl_div(logits.log_softmax(1), expected.softmax(1), reduction="batchmean")
                gradients = torch.autograd.grad(divergence, list(outputs.values()))
                for cache, gradient in zip(caches.values(), gradients, strict=True):
                    cache.append(gradient.abs().add_(1))
        return caches

    def _following(self, live: LiveTensors, part: slice) -> dict[str, Tensor]:
        values = {name: cache.read(part) for name, cache in live.items()}
        return values | self.unit.run(*(values[name] for name in self.unit.inputs))

    def _logits(self, values: dict[str, Tensor]) -> Tensor:
        last = self.unit
        for last in self.later:
            values = values | last.run(*(values[name] for name in last.inputs))
        logits = values[last.targets[0]]
        if logits.dim() != 2 or len(last.outputs) != 1:  # noqa: PLR2004 - images and classes
            raise ZSQBenchError("the loss fisher needs a classifier, with one output [N, classes]; take the loss mse")
        return logits.float()

    def _diverged(self) -> ZSQBenchError:
        return ZSQBenchError(
            f"{self.curve}: the loss is not finite: lower the learning rates, or look whether the network itself gives "
            "finite outputs for the calibration images"
        )


def _group(parameters: Sequence[Tensor], lr: float, *, is_annealed: bool) -> dict[str, Any]:
    """Parameters of an optimiser with their rate as a function of the part of the iterations that is over."""

    def rate(done: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * done)) if is_annealed else lr

    return {"params": parameters, "lr": lr, "rate": rate}
