"""Measure reconstruction: `python benchmarks/reconstruction.py`. Ratios of one run; seconds are of this machine.

Weights are seeded random numbers of realistic spread: shapes decide the time. `--images` sets the calibration set of
the memory figures, each of which is measured in a process of its own.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from zsqbench.quant import (
    Memory,
    Reconstruction,
    Rounding,
    Stage,
    StepSizes,
    Unit,
    calibrate_activations_mse,
    calibrate_weights,
    find_units,
    prepare,
    quantized_layers,
)
from zsqbench.quant.reconstruction.activation_cache import ActivationCache
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.propagation import in_float, push, quantized
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context
from zsqbench.zoo.resnet import CifarResNet

CPU = torch.device("cpu")
ROUNDS = 5


def show(what: str, measured: str, bound: str) -> None:
    """One line of the report."""
    print(f"{what:<78} {measured:>26}   {bound}", flush=True)


def networks() -> Iterator[tuple[str, nn.Module, tuple[int, int, int], int]]:
    """Name, network, input size, and how many images are enough."""
    torch.manual_seed(0)
    yield "ResNet-20, 32 px", CifarResNet(depth=20, classes=10), (3, 32, 32), 64
    yield "ResNet-18, 224 px", models.resnet18(weights=None), (3, 224, 224), 32
    yield "MobileNetV2, 224 px", models.mobilenet_v2(weights=None), (3, 224, 224), 32


def student_of(network: nn.Module, size: tuple[int, int, int]) -> Any:
    """A student with calibrated quantizers."""
    student = prepare(network.eval().requires_grad_(False), parse_scheme("hw/w4a4"), size)
    calibrate_weights(student, "minmax")
    return student


def images_of(count: int, size: tuple[int, int, int]) -> Tensor:
    """Seeded noise."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0))


def seconds_per_step(action: Callable[[int], object]) -> Callable[[], float]:
    """Seconds of one of a few steps, which `action(count)` takes."""

    def measure() -> float:
        started = time.perf_counter()
        action(4)
        return (time.perf_counter() - started) / 4

    return measure


def bare_step(unit: Unit, inputs: list[Tensor], target: Tensor) -> Callable[[int], None]:
    """Forward and backward of the unit in float with its weights as parameters, and an Adam update of these."""
    weights = [layer.weight.requires_grad_() for _, layer in unit.layers]
    optimizer = torch.optim.Adam(weights, fused=True)

    def steps(count: int) -> None:
        with in_float(unit):
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                functional.mse_loss(unit.run(*inputs)[unit.targets[0]], target).backward()
                optimizer.step()

    return steps


def learning_step(
    unit: Unit, stage: Stage, inputs: dict[str, ActivationCache], target: ActivationCache, layers: list[Any]
) -> Callable[[int], None]:
    """Iterations of a stage, regulariser included."""
    learning = Learning(
        unit=unit, stage=stage, ctx=context(), memory=Memory(CPU), inputs=inputs, plain=inputs,
        targets={unit.targets[0]: target}, layers=layers, later=[], curve="", tick=lambda: None,
    )  # fmt: skip
    soft = learning._begin()  # noqa: SLF001

    def steps(count: int) -> None:
        learning.stage = dataclasses.replace(stage, iterations=count)
        with quantized(unit, stage):
            learning._optimize(soft, None)  # noqa: SLF001

    return steps


def steps(threads: int) -> None:
    """A step of either stage against a bare step, summed over all units of a network."""
    torch.set_num_threads(threads)
    from zsqbench.quant import Annealing

    weights = Stage(4, rounding=Rounding(annealing=Annealing(warmup=0.0)))
    activations = Stage(4, step_sizes=StepSizes(), quantize_activations=True, source="float", power=2.4)
    for name, network, size, count in networks():
        student, images = student_of(network, size), images_of(count, size)
        calibrate_activations_mse(student, images[:8])
        units = find_units(student)
        live: dict[str, ActivationCache] = {units[0].inputs[0]: ActivationCache.of(images, Memory(CPU))}
        totals = {"bare": 0.0, "weights": 0.0, "activations": 0.0}
        for place, unit in enumerate(units):
            needed = {other for later in units[place + 1 :] for other in later.inputs} | set(unit.targets)
            with in_float(unit):
                following = push(unit, live, needed, 32, Memory(CPU))
            if unit.layers:
                batch = [live[source].read(slice(0, 32)) for source in unit.inputs]
                target = following[unit.targets[0]]
                layers = [layer for _, layer in unit.layers]
                plain = [layer.weight_quantizer for layer in layers]
                measured = {"bare": seconds_per_step(bare_step(unit, batch, target.read(slice(0, 32))))}
                measured["activations"] = seconds_per_step(learning_step(unit, activations, live, target, []))
                soft = learning_step(unit, weights, live, target, layers)
                rounding = [layer.weight_quantizer for layer in layers]
                measured["weights"] = seconds_per_step(soft)
                times: dict[str, list[float]] = {kind: [] for kind in measured}
                for _ in range(ROUNDS + 1):
                    for kind, measure in measured.items():
                        for layer, quantizer in zip(layers, rounding if kind == "weights" else plain, strict=True):
                            layer.weight_quantizer = quantizer
                            layer.weight.requires_grad_(kind == "bare")
                        times[kind].append(measure())
                for kind, taken in times.items():
                    totals[kind] += statistics.median(taken[1:])
            live = following
        for kind, bound in (("weights", "1.3"), ("activations", "1.5")):
            ratio = totals[kind] / totals["bare"]
            what = f"a step of stage {kind}, {name}, batch 32, {threads} threads, all units"
            show(what, f"{ratio:.2f} x {totals['bare'] * 1000:.0f} ms", f"at most {bound} x bare")


def caching() -> None:
    """What a stage takes beyond its iterations, in passes over the images through the float network."""
    for name, network, size, count in networks():
        student, images = student_of(network, size), images_of(count, size)
        layer, calls = quantized_layers(student)[0][1], []
        layer.register_forward_pre_hook(
            lambda layer, _: calls.append(layer.weight_quantizer.enabled) if not torch.is_grad_enabled() else None  # noqa: B023
        )
        engine = Reconstruction(student, images, context(), {"weights": Stage(1, rounding=Rounding())})
        started = time.perf_counter()
        engine.run("weights")
        took = time.perf_counter() - started
        batches = count // 32
        passes = f"{calls.count(False) / batches:.1f} float, {calls.count(True) / batches:.1f} quantized"
        show(f"passes of a stage, {name} ({took:.1f} s in all)", passes, "at most 2.5 and 2.5")


def peak(count: int, budget: float) -> float:
    """Peak memory in GiB of reconstructing ResNet-50 on so many images with so many GiB of caches."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (count, budget))


def _peak(count: int, budget: float) -> float:
    size = (3, 224, 224)
    torch.manual_seed(0)
    student = student_of(models.resnet50(weights=None), size)
    images = images_of(count, size)
    memory = Memory(CPU, host_bytes=int(budget * 2**30))
    Reconstruction(student, images, context(), {"weights": Stage(1, rounding=Rounding())}, memory=memory).run("weights")
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - a file of the kernel
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def memory(counts: list[int]) -> None:
    """Peak memory with caches in files."""
    for count in counts:
        images = count * 3 * 224 * 224 * 4 / 2**30
        show(
            f"peak memory, ResNet-50, {count} images of {images:.2f} GiB, caches of 1 GiB",
            f"{peak(count, 1.0):.2f} GiB",
            "",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--only", choices=["steps", "caching", "memory"])
    options = parser.parse_args()
    print(f"torch {torch.__version__}")
    if options.only in (None, "steps"):
        steps(1)
    if options.only in (None, "caching"):
        caching()
    if options.only in (None, "memory"):
        memory(options.images)
