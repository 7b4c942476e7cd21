"""Runs of one unit on all images, in float or quantized for a stage, from the caches of one boundary to the next."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.fake_quant import TensorQuantizer
from zsqbench.quant.ranges.calibration import switched
from zsqbench.quant.reconstruction.activation_cache import ActivationCache, LiveTensors, Memory, batches
from zsqbench.quant.reconstruction.stage import Stage


def in_float(unit: Unit) -> contextlib.AbstractContextManager[None]:
    """Let a unit compute as in the float network."""
    return switched(quantizers_of(unit), enabled=False)


def quantized(unit: Unit, stage: Stage) -> contextlib.AbstractContextManager[None]:
    """Let a unit compute as in a stage: with rounded weights, and rounded activations if the stage says so."""
    return switched(() if stage.quantize_activations else unit.quantizers, enabled=False)


@torch.no_grad()
def push(
    unit: Unit,
    live: LiveTensors,
    needed: set[str],
    batch_size: int,
    memory: Memory,
    look: Callable[[Mapping[str, Tensor], slice], None] | None = None,
) -> dict[str, ActivationCache]:
    """Run a unit on all images. Returns the needed part of the live values. `look` is given the outputs."""
    count = next(iter(live.values())).count
    made = {name: ActivationCache(count, memory) for name in unit.outputs if name in needed}
    for part in batches(count, batch_size) if made or look else ():
        outputs = unit.run(*(live[name].read(part) for name in unit.inputs))
        if look is not None:
            look(outputs, part)
        for name, cache in made.items():
            cache.append(outputs[name])
    return {name: cache for name, cache in live.items() if name in needed} | made


def quantizers_of(unit: Unit) -> list[TensorQuantizer]:
    """All quantizers of a unit: of its activations, and of its weights."""
    return [*unit.quantizers, *(layer.weight_quantizer for _, layer in unit.layers)]
