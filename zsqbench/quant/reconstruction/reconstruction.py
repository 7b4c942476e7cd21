"""Reconstruction: rounding and step sizes are learned unit by unit, so that unit outputs fit the float ones.

This is the engine of AdaRound, BRECQ, QDrop, GENIE-M, FlexRound and PD-Quant. Inputs and targets of a unit are cached.
Running the unit alone gives those of the next one. So a stage costs one pass of the images through the float network
and two through the quantized network, whatever the depth, including the losses before and after. A unit whose learning
is undone costs one more pass of the unit. The loss fisher, and losses on the prediction, also run the network behind
each unit.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from zsqbench.errors import OutOfMemoryError, ZSQBenchError, is_memory_shortage
from zsqbench.quant.context import LearningContext
from zsqbench.quant.graph.units import Grain, Unit, describe_units, find_units
from zsqbench.quant.grids.fake_quant import BYTE, ChosenCodes
from zsqbench.quant.ranges.calibration import check_images
from zsqbench.quant.reconstruction.activation_cache import GIB, ActivationCache, LiveTensors, Memory, batches
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.propagation import in_float, push, quantized
from zsqbench.quant.reconstruction.stage import Stage
from zsqbench.quant.student import activation_quantizers, quantized_layers


class Reconstruction:
    """Runs the stages of a method on a prepared student whose weight quantizers are calibrated.

    A unit that learning made worse, on the calibration images and by the loss of its stage, keeps its earlier values.
    From a checkpoint it resumes after the last finished unit, with the same results.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        images: Tensor,
        ctx: LearningContext,
        stages: Mapping[str, Stage],
        *,
        grain: Grain = "block",
        skip: Callable[[Unit], bool] = lambda _: False,
        memory: Memory | None = None,
        before_unit: Callable[[Unit, Sequence[Tensor]], None] | None = None,
        before_images: int = 0,
        correct: Callable[[Unit, Sequence[Tensor]], Sequence[Tensor] | None] | None = None,
    ) -> None:
        """`before_unit` is called with each unit before it learns, and its inputs for a first batch or more images.

        `correct` is called with each unit that learns and a batch of its inputs in the float network. Its result,
        unless None, replaces the float inputs in the mixture. The float unit's outputs for it are the targets.

        Raises ZSQBenchError for images that the network does not take, or that are fewer than a batch.
        """
        check_images(images, _images(student).meta["shape"][1:])
        batch_size = max(stage.batch_size for stage in stages.values())
        if len(images) < batch_size:
            raise ZSQBenchError(
                f"{len(images)} calibration images are fewer than one batch: give at least {batch_size}, or lower "
                f"batch_size ({batch_size})"
            )
        self.student, self.images, self.ctx, self.stages = student, images, ctx, stages
        self.units = find_units(student, grain)
        self.memory = memory or Memory(ctx.device)
        self._skip = skip
        self._before_unit = before_unit
        self._before_images = before_images
        self._correct = correct
        self._resumed = ctx.resume() or {}
        self._settled: set[str] = set()  # layers that were learned at their first call
        self._total = sum(stage.iterations * len(self._learners(stage)) for stage in stages.values())
        self._done = 0
        ctx.note(describe_units(self.units))
        skipped = [unit.name for unit in self.units if unit.kind != "passage" and skip(unit)]
        if skipped:
            ctx.note(f"left out of reconstruction: {', '.join(skipped)}")

    def run(self, name: str) -> None:
        """Run a stage, named as in `stages`. Raises ZSQBenchError where memory runs out or a loss is not finite."""
        bounds = {
            "batch_size": self.stages[name].batch_size,
            "device_memory": self.memory.device_bytes / GIB,
            "host_memory": self.memory.host_bytes / GIB,
        }
        with memory_errors(self.ctx.device, bounds):
            self._run(name, self.stages[name])

    def _run(self, name: str, stage: Stage) -> None:
        learners = self._learners(stage)
        if not learners and self._before_unit is None:
            return
        self.ctx.images_read(len(self.images) if learners else stage.batch_size)
        finished = self._resume(name)
        if finished == len(self.units):
            self._advance(stage.iterations * len(learners))
            return
        plain: LiveTensors = {_images(self.student).name: ActivationCache.of(self.images, self.memory)}
        inputs = plain
        for place, unit in enumerate(self.units):
            needed = {tensor for later in self.units[place + 1 :] for tensor in later.inputs}
            with in_float(unit):
                following = push(unit, plain, needed.union(unit.targets), stage.batch_size, self.memory)
            if self._before_unit is not None and unit.kind != "passage" and place >= finished:
                first = slice(0, max(stage.batch_size, self._before_images))
                self._before_unit(unit, [inputs[tensor].read(first) for tensor in unit.inputs])
            reads_float = stage.source == "float"
            if unit in learners and place >= finished:
                to_push = set() if reads_float else needed
                corrected = self._corrected(unit, plain, stage.batch_size)
                mixed_with, targets = corrected or (None, {tensor: following[tensor] for tensor in unit.targets})
                inputs = self._learn(name, stage, place, plain, inputs, targets, to_push, mixed_with)
                del corrected, mixed_with, targets  # frees memory for the next unit
                self.ctx.checkpoint(self._state(name, place + 1))
            else:
                self._advance(stage.iterations if unit in learners else 0)
                if not reads_float:
                    with quantized(unit, stage):
                        inputs = push(unit, inputs, needed, stage.batch_size, self.memory)
            plain = {tensor: cache for tensor, cache in following.items() if tensor in needed}
            if reads_float:
                inputs = plain

    def _learn(
        self,
        name: str,
        stage: Stage,
        place: int,
        plain: LiveTensors,
        inputs: LiveTensors,
        targets: LiveTensors,
        needed: set[str],
        mixed_with: LiveTensors | None,
    ) -> LiveTensors:
        unit = self.units[place]
        layers = [layer for path, layer in unit.layers if path not in self._settled] if stage.rounding else []
        curve = f"{name}/{unit.name}"
        learning = Learning(
            unit=unit,
            stage=stage,
            ctx=self.ctx,
            memory=self.memory,
            inputs=inputs,
            plain=plain,
            targets=targets,
            layers=layers,
            later=self.units[place + 1 :],
            curve=curve,
            tick=lambda: self._advance(1),
            mixed_with=mixed_with,
        )
        before, after, following = learning.run(needed)
        self.ctx.log(f"reconstruction/{curve}", before, 0)
        self.ctx.log(f"reconstruction/{curve}", after, stage.iterations)
        if stage.rounding:
            self._settled.update(path for path, _ in unit.layers)
        return following

    def _corrected(
        self, unit: Unit, plain: LiveTensors, batch_size: int
    ) -> tuple[dict[str, ActivationCache], dict[str, ActivationCache]] | None:
        """The corrected inputs of the unit in the float network, and their targets; None where nothing is corrected."""
        if self._correct is None:
            return None
        count = len(self.images)
        moved = {name: ActivationCache(count, self.memory) for name in unit.inputs}
        targets = {name: ActivationCache(count, self.memory) for name in unit.targets}
        for part in batches(count, batch_size):
            found = self._correct(unit, [plain[name].read(part) for name in unit.inputs])
            if found is None:
                return None
            for cache, values in zip(moved.values(), found, strict=True):
                cache.append(values)
            with torch.no_grad(), in_float(unit):
                outputs = unit.run(*(values.detach().clone() for values in found))
            for name, cache in targets.items():
                cache.append(outputs[name])
        return moved, targets

    def _learners(self, stage: Stage) -> list[Unit]:
        """The units with something to learn. A layer that several units call is learned in the first."""
        known = set(self._settled) if stage.rounding else set()
        learners = []
        for unit in self.units if stage.iterations else ():
            rounds = stage.rounding and any(path not in known for path, _ in unit.layers)
            if unit.outputs and not self._skip(unit) and (rounds or (stage.step_sizes and unit.quantizers)):
                learners.append(unit)
            known.update(path for path, _ in unit.layers)
        return learners

    def _advance(self, iterations: int) -> None:
        self._done += iterations
        self.ctx.progress(self._done, self._total)

    def _resume(self, name: str) -> int:
        """Restore this stage's part of the checkpoint. Returns the number of finished units."""
        order = list(self.stages)
        resumed = order.index(self._resumed["stage"]) if self._resumed else -1
        if order.index(name) > resumed:
            return 0
        self._settled = set(self._resumed["settled"])
        for path, layer in quantized_layers(self.student):
            if f"codes.{path}" in self._resumed:
                scale = self._resumed[f"scale.{path}"].to(self.ctx.device)
                layer.weight_quantizer.set_parameters(scale, layer.weight_quantizer.zero_point)
                layer.choose(self._resumed[f"codes.{path}"].to(scale))
        if order.index(name) < resumed:
            return len(self.units)
        finished: int = self._resumed["units"]
        for quantizer in (quantizer for unit in self.units[:finished] for quantizer in unit.quantizers):
            scale = self._resumed[f"step.{quantizer.name}"].to(self.ctx.device)
            zero_point = self._resumed[f"zero_point.{quantizer.name}"].to(self.ctx.device)
            if (scale > 0).all():  # a neutral scale means that activations are not calibrated yet
                quantizer.set_parameters(scale, zero_point)
        return finished

    def _state(self, name: str, units: int) -> dict[str, Any]:
        state: dict[str, Any] = {"stage": name, "units": units, "settled": sorted(self._settled)}
        for path, layer in quantized_layers(self.student):
            quantizer = layer.weight_quantizer
            if isinstance(quantizer, ChosenCodes):
                state[f"codes.{path}"] = quantizer.chosen.to(torch.uint8 if quantizer.bits <= BYTE else torch.int32)
                state[f"scale.{path}"] = quantizer.scale
        for tensor, activation in activation_quantizers(self.student):
            is_neutral = activation.is_held and not activation.enabled
            scale = torch.zeros_like(activation.scale) if is_neutral else activation.scale
            state |= {f"step.{tensor}": scale, f"zero_point.{tensor}": activation.zero_point}
        return state


@contextlib.contextmanager
def memory_errors(device: torch.device, options: Mapping[str, float]) -> Iterator[None]:
    """Turn running out of memory into an OutOfMemoryError that names the options to lower, with their values."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_shortage(error):
            raise
        named = ", ".join(f"{name} ({value:g})" for name, value in options.items())
        raise OutOfMemoryError(f"{device} ran out of memory: lower one of the options {named}") from error


def _images(student: fx.GraphModule) -> fx.Node:
    node: fx.Node = next(node for node in student.graph.nodes if node.op == "placeholder")
    return node
