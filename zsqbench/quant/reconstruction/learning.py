"""Learning of one unit: the rounding of its weights and the step sizes of its activations, by gradient descent."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.context import LearningContext
from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.fake_quant import (
    SMALLEST_STEP,
    ActivationQuantizer,
    QuantizedLayer,
    TensorQuantizer,
    WeightQuantizer,
)
from zsqbench.quant.reconstruction.activation_cache import ActivationCache, LiveTensors, Memory
from zsqbench.quant.reconstruction.draws import draw, keep_mask, select
from zsqbench.quant.reconstruction.losses import UnitBatch, UnitLoss, reconstruction_loss, total, with_loss
from zsqbench.quant.reconstruction.prediction import Prediction
from zsqbench.quant.reconstruction.propagation import push, quantized
from zsqbench.quant.reconstruction.rounding import LearnedRounding, ParameterGroup
from zsqbench.quant.reconstruction.stage import Draws, Stage

POINTS = 200
"""Points that are kept of each unit's curve."""


@dataclass
class Learning:
    """One unit in one stage, with its inputs and targets. Its loss is the stage's, over all images."""

    unit: Unit
    stage: Stage
    ctx: LearningContext
    memory: Memory
    inputs: LiveTensors
    """Inputs of the unit."""
    plain: LiveTensors
    """The same inputs in the float network."""
    targets: Mapping[str, ActivationCache]
    """Targets of its outputs: the outputs in the float network."""
    layers: Sequence[QuantizedLayer]
    """Layers whose rounding is learned."""
    later: Sequence[Unit]
    curve: str
    """Name of the stage and the unit, for the log."""
    tick: Callable[[], None]
    """Called after each iteration."""
    mixed_with: LiveTensors | None = None
    """Tensors with which quantized inputs are mixed, where they are not `plain`."""

    def run(self, needed: set[str]) -> tuple[float, float, dict[str, ActivationCache]]:
        """Learn. If the stage keeps the better values, learned values are kept only where the loss did not rise.

        Returns the loss before and after, and the live values that are needed behind the unit.
        """
        rounded = [layer.weight_quantizer for layer in self.layers]
        steps = [quantizer.scale.clone() for quantizer in self._learned_quantizers()]
        with quantized(self.unit, self.stage):
            learned = self._begin()
            weights = self._prediction.fisher_weights(self.targets) if self.stage.fisher else None
            self._use(rounded)
            before, _ = self._loss(weights, set())
            self._use(learned)
            self._optimize(learned, weights)
            self._harden(learned)
            after, following = self._loss(weights, needed)
            if self.stage.keep_better and not after <= before:
                self._use(rounded)
                for quantizer, step in zip(self._learned_quantizers(), steps, strict=True):
                    quantizer.set_parameters(step, quantizer.zero_point)
                self.ctx.note(
                    f"{self.curve}: the earlier values are kept, because learning increased the loss on the "
                    f"calibration images: {after:.4g} against {before:.4g}"
                )
                del following  # frees its memory, which is needed again
                after, following = self._loss(weights, needed)
        return before, after, following

    def _learned_quantizers(self) -> list[ActivationQuantizer]:
        learnable = [quantizer for quantizer in self.unit.quantizers if quantizer.enabled and not quantizer.is_held]
        return learnable if self.stage.step_sizes else []

    def _use(self, quantizers: Sequence[WeightQuantizer]) -> None:
        for layer, quantizer in zip(self.layers, quantizers, strict=True):
            layer.weight_quantizer = quantizer

    def _begin(self) -> list[LearnedRounding]:
        rounding = self.stage.rounding
        learned = [rounding(layer.weight_quantizer, layer.weight) for layer in self.layers] if rounding else []
        self._use(learned)
        return learned

    @cached_property
    def _prediction(self) -> Prediction:
        name = "the loss fisher" if self.stage.fisher else "this loss"
        return Prediction(self.unit, self.later, self.inputs, self.plain, self.stage.batch_size, self.memory, name)

    @property
    def _count(self) -> int:
        return next(iter(self.targets.values())).count

    def _loss(self, weights: LiveTensors | None, needed: set[str]) -> tuple[float, dict[str, ActivationCache]]:
        """The loss on all images and, from the same pass, the values that are needed behind the unit."""
        total = 0.0

        def add(outputs: Mapping[str, Tensor], part: slice) -> None:
            nonlocal total
            total += self._distance(outputs, part, weights).item() * (part.stop - part.start)

        following = push(self.unit, self.inputs, needed, self.stage.batch_size, self.memory, add)
        if not math.isfinite(total):
            raise self._diverged()
        return total / self._count, following

    def _distance(self, outputs: Mapping[str, Tensor], index: Tensor | slice, weights: LiveTensors | None) -> Tensor:
        """The loss of a batch: the stage's own loss, or the sum over the reconstructed outputs."""
        if self.stage.loss is not None:
            return self.stage.loss(self._batch(outputs, index))
        losses = []
        for name, target in self.targets.items():
            weight = None if weights is None else weights[name].read(index)
            loss = reconstruction_loss(outputs[name], target.read(index), self.stage.power, self.stage.fisher, weight)
            losses.append(loss)
        return total(losses)

    def _batch(
        self, outputs: Mapping[str, Tensor], index: Tensor | slice, quantized: Mapping[str, Tensor] | None = None
    ) -> UnitBatch:
        """The batch for a loss. Slices of all images are read as they are, and drawn indices as drawn.

        `quantized` are the outputs for the quantized inputs, where they exist beside the outputs for mixed inputs.
        """
        is_mixed = self.stage.source == "mixed" and isinstance(index, Tensor)

        def predict() -> Tensor:
            if quantized is not None:
                return self._prediction.quantized(index, quantized)
            given = self.unit.run(*self._read(self.inputs, index)) if is_mixed else outputs
            return self._prediction.quantized(index, given)

        targets = {name: target.read(index) for name, target in self.targets.items()}
        return UnitBatch(outputs, targets, predict, lambda: self._prediction.in_float(index))

    def _optimize(self, learned: Sequence[LearnedRounding], weights: LiveTensors | None) -> None:
        stage, iterations = self.stage, self.stage.iterations
        steps = [quantizer.scale for quantizer in self._learned_quantizers()]
        lowest = [SMALLEST_STEP * step.detach() for step in steps]
        groups = self._groups(learned, steps)
        if not groups:  # its quantizers are not calibrated, or another unit learned its layers
            for _ in range(iterations):
                self.tick()
            return
        optimizer = torch.optim.Adam(groups, fused=True)
        measure = self._measure(weights)
        indices = draw(self._count, stage.batch_size, self._draws(), self.ctx)
        every = max(1, iterations // POINTS)
        with contextlib.ExitStack() as until_learned:
            for step in steps:
                until_learned.callback(step.requires_grad_(True).requires_grad_, False)
            sizes = self._watch(until_learned)
            largest: dict[TensorQuantizer, int] = {}
            largest |= {quantizer: quantizer.largest_multiple() for quantizer in self._learned_quantizers()}
            for iteration, index in zip(range(1, iterations + 1), indices, strict=False):
                loss = measure(index)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._adjust_gradients(learned, sizes, largest, iteration)
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"]((iteration - 1) / iterations)
                optimizer.step()
                sizes.clear()
                with torch.no_grad():
                    for step, floor in zip(steps, lowest, strict=True):
                        torch.maximum(step, floor, out=step)
                    for rounding in learned:
                        rounding.constrain()
                if iteration % every == 0:
                    self.ctx.log(self.curve, loss, iteration)
                self.tick()
        parameters = [parameter for group in groups for parameter in group["params"]]
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            raise self._diverged()

    def _measure(self, weights: LiveTensors | None) -> Callable[[Tensor], Tensor]:
        """The loss of drawn images, compiled where the settings say so.

        The unit is compiled with it, unless the loss is the stage's own.
        """
        if self.stage.loss is None and weights is None:
            targets = self.targets.values()
            return lambda index: self._whole(*(target.read(index) for target in targets), *self._drawn_inputs(index))
        run = self.ctx.compile(self.unit.module)
        if self.stage.doubled and self.stage.loss is not None:
            return partial(self._doubled, run, self.stage.loss)

        def measure(index: Tensor) -> Tensor:
            outputs = dict(zip(self.unit.outputs, run(*self._drawn_inputs(index)), strict=True))
            return self._distance(outputs, index, weights)

        return measure

    def _doubled(self, run: Callable[..., Sequence[Tensor]], loss: UnitLoss, index: Tensor) -> Tensor:
        """The stage's own loss of drawn images, from one pass of drawn inputs and quantized inputs."""
        values = self._read(self.inputs, index)
        both = run(*(torch.cat(pair) for pair in zip(self._drawn(values, index), values, strict=True)))
        halves = {name: output.chunk(2) for name, output in zip(self.unit.outputs, both, strict=True)}
        drawn, quantized = ({name: pair[place] for name, pair in halves.items()} for place in (0, 1))
        return loss(self._batch(drawn, index, quantized))

    @cached_property
    def _whole(self) -> Callable[..., Tensor]:
        return self.ctx.compile(with_loss(self.unit, list(self.targets), self.stage.power))

    def _groups(self, learned: Sequence[LearnedRounding], steps: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser, by their rates."""
        groups = [group for rounding in learned for group in rounding.parameter_groups()]
        if self.stage.step_sizes and steps:
            groups.append(ParameterGroup(steps, self.stage.step_sizes.lr, is_annealed=True))
        merged: dict[tuple[float, bool], list[Tensor]] = {}
        for group in groups:
            merged.setdefault((group.lr, group.is_annealed), []).extend(group.tensors)
        return [_group(tensors, lr, is_annealed=annealed) for (lr, annealed), tensors in merged.items()]

    def _adjust_gradients(
        self,
        learned: Sequence[LearnedRounding],
        sizes: Mapping[TensorQuantizer, int],
        largest: Mapping[TensorQuantizer, int],
        iteration: int,
    ) -> None:
        for rounding in learned:
            rounding.regularize(iteration, self.stage.iterations)
        for step, size in sizes.items():
            if step.scale.grad is not None:
                step.scale.grad.div_(math.sqrt(size * largest[step]))

    def _watch(self, until_learned: contextlib.ExitStack) -> dict[TensorQuantizer, int]:
        """Drop quantization at random behind the quantizers, and note the sizes of rounded values, where needed."""
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
        return self._drawn(self._read(self.inputs, index), index)

    def _drawn(self, values: list[Tensor], index: Tensor) -> list[Tensor]:
        """The inputs for learning, from the values behind the earlier units."""
        if self.stage.source != "mixed":
            return values
        others = self.plain if self.mixed_with is None else self.mixed_with
        return [self._mixed(*pair) for pair in zip(values, self._read(others, index), strict=True)]

    def _mixed(self, rounded: Tensor, plain: Tensor) -> Tensor:
        return select(keep_mask(rounded.shape, 1 - self.stage.drop, self.ctx), rounded, plain)

    def _draws(self) -> Draws:
        return (self.stage.layer_draws if self.unit.kind == "layer" else None) or self.stage.draws

    @torch.no_grad()
    def _harden(self, learned: Sequence[LearnedRounding]) -> None:
        for layer, rounding in zip(self.layers, learned, strict=True):
            layer.choose(rounding.codes(layer.weight))

    def _diverged(self) -> ZSQBenchError:
        return ZSQBenchError(
            f"{self.curve}: the loss is not finite: lower the learning rates, or look whether the network itself gives "
            "finite outputs for the calibration images"
        )


def _group(parameters: Sequence[Tensor], lr: float, *, is_annealed: bool) -> dict[str, Any]:
    """Parameters of an optimiser with their rate as a function of the finished part of the iterations."""

    def rate(done: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * done)) if is_annealed else lr

    return {"params": parameters, "lr": lr, "rate": rate}
