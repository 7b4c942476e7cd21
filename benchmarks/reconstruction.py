"""Measure reconstruction: `python benchmarks/reconstruction.py`. Ratios of one run; seconds are of this machine.

Weights are seeded random numbers of realistic spread: shapes decide the time. `--images` sets the calibration set of
the memory figures, each of which is measured in a process of its own. `--quick` runs everything once on a tiny network,
to see that it runs: its figures mean nothing.
"""

import argparse
import contextlib
import copy
import dataclasses
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    Annealing,
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
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, QuantizedLayer, WeightQuantizer
from zsqbench.quant.reconstruction.activation_cache import ActivationCache
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.propagation import in_float, push, quantized
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context
from zsqbench.zoo.resnet import CifarResNet

CPU = torch.device("cpu")
ROUNDS = 5
DEFAULT = Settings()


def show(what: str, measured: str, bound: str) -> None:
    """One line of the report."""
    print(f"{what:<78} {measured:>26}   {bound}", flush=True)


def networks(*, quick: bool) -> Iterator[tuple[str, nn.Module, tuple[int, int, int], int]]:
    """Name, network, input size, and how many images are enough."""
    torch.manual_seed(0)
    if quick:
        yield "ResNet-8 of width 2, 8 px", CifarResNet(depth=8, width=2), (3, 8, 8), 32
        return
    yield "ResNet-20, 32 px", CifarResNet(depth=20, classes=10), (3, 32, 32), 64
    yield "ResNet-18, 224 px", models.resnet18(weights=None), (3, 224, 224), 32
    yield "MobileNetV2, 224 px", models.mobilenet_v2(weights=None), (3, 224, 224), 32


def transformers(*, quick: bool) -> Iterator[tuple[str, nn.Module, tuple[int, int, int], int]]:
    """The same of a transformer with two blocks of DeiT-T's size."""
    torch.manual_seed(0)
    if not quick:
        yield "DeiT-T of two blocks, 224 px", models.VisionTransformer(224, 16, 2, 3, 192, 768), (3, 224, 224), 32


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
    unit: Unit,
    stage: Stage,
    inputs: dict[str, ActivationCache],
    target: ActivationCache,
    layers: Sequence[QuantizedLayer],
    settings: Settings = DEFAULT,
    later: Sequence[Unit] = (),
) -> Callable[[int], None]:
    """Iterations of a stage, regulariser included."""
    ctx = context()
    ctx.settings = settings
    learning = Learning(
        unit=unit, stage=stage, ctx=ctx, memory=Memory(CPU), inputs=inputs, plain=inputs,
        targets={unit.targets[0]: target}, layers=layers, later=later, curve="", tick=lambda: None,
    )  # fmt: skip
    soft = learning._begin()  # noqa: SLF001

    def steps(count: int) -> None:
        learning.stage = dataclasses.replace(stage, iterations=count)
        with quantized(unit, stage):
            learning._optimize(soft, None)  # noqa: SLF001

    return steps


class ReleasedRounding(nn.Module):
    """A weight whose rounding BRECQ's release learns, operation by operation."""

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__()
        self.scale, self.zero_point, self.top = quantizer.scale, quantizer.zero_point, 2**quantizer.bits - 1
        rest = weight / self.scale - torch.floor(weight / self.scale)
        self.alpha = nn.Parameter(-torch.log(1.2 / (rest + 0.1) - 1))
        self.learns = True

    def soft(self) -> Tensor:
        """The part of a step that is added to the floor."""
        return torch.clamp(torch.sigmoid(self.alpha) * 1.2 - 0.1, 0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with soft rounding, or with the one that was chosen."""
        below = torch.floor(weight / self.scale)
        codes = below + (self.soft() if self.learns else (self.alpha >= 0).float())
        return (torch.clamp(codes + self.zero_point, 0, self.top) - self.zero_point) * self.scale


class ReleasedQuantizer(nn.Module):
    """An activation that BRECQ's release rounds, operation by operation; its step size learns."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.delta = nn.Parameter(quantizer.scale.clone())
        self.zero_point, self.top = quantizer.zero_point, 2**quantizer.bits - 1
        self.enabled = False

    def forward(self, x: Tensor) -> Tensor:
        """X on the grid."""
        if not self.enabled:
            return x
        steps = x / self.delta
        codes = (torch.round(steps) - steps).detach() + steps + self.zero_point
        return (torch.clamp(codes, 0, self.top) - self.zero_point) * self.delta


def released_step(unit: Unit, kind: str, live: dict[str, ActivationCache], target: Tensor) -> Callable[[int], None]:
    """What BRECQ's release does in an iteration of either stage, on a copy of a unit."""
    network = copy.deepcopy(unit.module)
    for name, module in list(network.named_modules()):
        if isinstance(module, ActivationQuantizer):
            network.set_submodule(name, ReleasedQuantizer(module))
        elif isinstance(module, QuantizedLayer):
            module.weight.requires_grad_()  # as in the release, which computes gradients that nobody reads
            module.weight_quantizer = ReleasedRounding(module.weight_quantizer, module.weight.detach())  # type: ignore[assignment]
    roundings = [module for module in network.modules() if isinstance(module, ReleasedRounding)]
    quantizers = [module for module in network.modules() if isinstance(module, ReleasedQuantizer)]
    rounds = kind == "weights"
    for each in roundings:
        each.learns = rounds
    for quantizer in quantizers:
        quantizer.enabled = not rounds
    learned = [each.alpha for each in roundings] if rounds else [quantizer.delta for quantizer in quantizers]
    optimizer = torch.optim.Adam(learned, lr=1e-3) if learned else None
    inputs, place = [live[source].read(slice(None)) for source in unit.inputs], unit.outputs.index(unit.targets[0])

    def steps(count: int) -> None:
        for _ in range(count if optimizer is not None else 0):
            index = torch.randperm(len(target))[:32]
            optimizer.zero_grad()
            error = (network(*(values[index] for values in inputs))[place] - target[index]).abs()
            loss = error.pow(2.0 if rounds else 2.4).sum(1).mean()
            for each in roundings if rounds else ():
                loss = loss + 0.01 * (1 - ((each.soft() - 0.5).abs() * 2).pow(20.0)).sum()
            loss.backward()
            optimizer.step()

    return steps


FASTER = {"weights": 2.0, "activations": 2.5}
"""How many times as fast as the release a step is to be, in float32 with all settings that are to be fast."""

SETTINGS = ({}, {"layout": "channels_last"}, {"layout": "channels_last", "compile": True})
WEIGHTS = Stage(4, rounding=Rounding(annealing=Annealing(warmup=0.0)))
ACTIVATIONS = Stage(4, step_sizes=StepSizes(), quantize_activations=True, source="float", power=2.4)


@dataclasses.dataclass(frozen=True)
class Ready:
    """A unit that is ready to learn."""

    unit: Unit
    live: dict[str, ActivationCache]
    """What is kept of the network before it."""
    target: ActivationCache
    later: Sequence[Unit] = ()
    """The rest of the network."""


def walk(network: nn.Module, size: tuple[int, int, int], count: int) -> Iterator[Ready]:
    """The units of a network that learn, with what is live before them and their targets."""
    student, images = student_of(network, size), images_of(count, size)
    calibrate_activations_mse(student, images[:8])
    units = find_units(student)
    live: dict[str, ActivationCache] = {units[0].inputs[0]: ActivationCache.of(images, Memory(CPU))}
    for place, unit in enumerate(units):
        needed = {other for later in units[place + 1 :] for other in later.inputs} | set(unit.targets)
        with in_float(unit):
            following = push(unit, live, needed, 32, Memory(CPU))
        if unit.layers:
            yield Ready(unit, live, following[unit.targets[0]], units[place + 1 :])
        live = following


def copied(unit: Unit) -> Unit:
    """A unit with modules of its own."""
    module = copy.deepcopy(unit.module)
    layers = tuple((path, module.get_submodule(path)) for path, _ in unit.layers)
    quantizers = tuple(each for each in module.modules() if isinstance(each, ActivationQuantizer))
    return dataclasses.replace(unit, module=module, layers=layers, quantizers=quantizers)


def settings_steps(only: list[str], *, quick: bool) -> None:
    """A step of either stage under settings that are to be fast, against the release's, summed over all units."""
    torch.set_num_threads(1)
    for name, network, size, count in networks(quick=quick):
        if only and name.split(",")[0] not in only:
            continue
        seconds: Counter[str] = Counter()
        compiling: Counter[str] = Counter()
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        for both in zip(walk(network, size, count), walk(last, size, count), strict=True):
            for kind, stage in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
                ways = ways_of(kind, stage, both, compiling)
                times: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(2 if quick else ROUNDS):
                    for way, action in ways.items():
                        times[way].append(seconds_per_step(action)())
                seconds.update({way: statistics.median(taken[1:]) for way, taken in times.items()})
        for kind, wanted in FASTER.items():
            for fields in SETTINGS:
                way, bound = f"{kind} {fields}", f"at least {wanted} x" if fields == SETTINGS[-1] else ""
                said = ", ".join(f"{key} {value}" for key, value in fields.items()) or "default"
                faster = seconds[f"{kind} released"] / seconds[way]
                measured = f"{faster:.2f} x as fast as released, {seconds[way] * 1000:.0f} ms"
                show(f"stage {kind}, {name}, {said}", measured, bound)
                if fields.get("compile"):
                    show(f"first step of stage {kind}, all units, {name}, compiled", f"{compiling[way]:.0f} s", "")


def ways_of(
    kind: str, stage: Stage, both: Sequence[Ready], compiling: Counter[str]
) -> dict[str, Callable[[int], None]]:
    """Steps of a unit, each way on modules of its own; what their first step takes is added to `compiling`."""
    first = both[0]
    ways = {f"{kind} released": released_step(first.unit, kind, first.live, first.target.read(slice(None)))}
    for fields in SETTINGS:
        settings, way = Settings(**fields), f"{kind} {fields}"
        ready = both[settings.layout == "channels_last"]
        unit = copied(ready.unit)
        layers = [layer for _, layer in unit.layers] if kind == "weights" else []
        ways[way] = learning_step(unit, stage, ready.live, ready.target, layers, settings)
        started = time.perf_counter()
        ways[way](1)
        compiling[way] += time.perf_counter() - started
    return ways


def steps(only: list[str], *, quick: bool) -> None:
    """A step of either stage against a bare step, summed over all units of a network."""
    torch.set_num_threads(1)
    for name, network, size, count in (*networks(quick=quick), *transformers(quick=quick)):
        if only and name.split(",")[0] not in only:
            continue
        totals = {"bare": 0.0, "weights": 0.0, "activations": 0.0}
        for ready in walk(network, size, count):
            unit, live, target = ready.unit, ready.live, ready.target
            batch = [live[source].read(slice(0, 32)) for source in unit.inputs]
            layers = [layer for _, layer in unit.layers]
            plain = [layer.weight_quantizer for layer in layers]
            measured = {"bare": seconds_per_step(bare_step(unit, batch, target.read(slice(0, 32))))}
            measured["activations"] = seconds_per_step(learning_step(unit, ACTIVATIONS, live, target, []))
            soft = learning_step(unit, WEIGHTS, live, target, layers)
            rounding = [layer.weight_quantizer for layer in layers]
            measured["weights"] = seconds_per_step(soft)
            times: dict[str, list[float]] = {kind: [] for kind in measured}
            for _ in range(2 if quick else ROUNDS + 1):
                for kind, measure in measured.items():
                    for layer, quantizer in zip(layers, rounding if kind == "weights" else plain, strict=True):
                        layer.weight_quantizer = quantizer
                        layer.weight.requires_grad_(kind == "bare")
                    times[kind].append(measure())
            for kind, taken in times.items():
                totals[kind] += statistics.median(taken[1:])
        for kind, bound in (("weights", "1.3"), ("activations", "1.5")):
            ratio = totals[kind] / totals["bare"]
            what = f"a step of stage {kind}, {name}, batch 32, 1 thread, all units"
            show(what, f"{ratio:.2f} x {totals['bare'] * 1000:.0f} ms", f"at most {bound} x bare")


def bare_prediction_step(ready: Ready, logits: Tensor) -> Callable[[int], None]:
    """Do the bare parts of a step of PD-Quant, in float.

    The unit on twice the batch, the rest of the network on half of it, squared error and divergence, the way back, and
    an Adam update of the unit's weights.
    """
    unit, target = ready.unit, ready.target.read(slice(0, 32))
    weights = [layer.weight.requires_grad_() for _, layer in unit.layers]
    optimizer = torch.optim.Adam(weights, fused=True)
    values = {name: cache.read(slice(0, 32)) for name, cache in ready.live.items()}
    twice = [torch.cat([values[name], values[name]]) for name in unit.inputs]

    def steps(count: int) -> None:
        with contextlib.ExitStack() as float_network:
            for each in (unit, *ready.later):
                float_network.enter_context(in_float(each))
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                halves = {name: output.chunk(2) for name, output in unit.run(*twice).items()}
                reached = values | {name: half for name, (_, half) in halves.items()}
                for each in ready.later:
                    reached |= each.run(*(reached[name] for name in each.inputs))
                found = reached[(ready.later or [unit])[-1].outputs[-1]]
                divergence = functional.kl_div(found.log_softmax(1), logits, reduction="batchmean")
                (functional.mse_loss(halves[unit.targets[0]][0], target) + divergence).backward()
                optimizer.step()

    return steps


def prediction(*, quick: bool) -> None:
    """A step of PD-Quant against its bare parts, summed over all units of a network."""
    torch.set_num_threads(1)
    loss = load_plugins().find("quantizer", "pd_quant").method(temperature=4.0).loss
    stage = dataclasses.replace(
        WEIGHTS, step_sizes=StepSizes(), quantize_activations=True, source="mixed", drop=0.5, loss=loss, doubled=True
    )
    for name, network, size, count in networks(quick=quick):
        with torch.no_grad():
            logits = network.eval()(images_of(count, size)[:32]).softmax(1)
        totals = {"bare": 0.0, "pd_quant": 0.0}
        for ready in walk(network, size, count):
            layers = [layer for _, layer in ready.unit.layers]
            plain = [layer.weight_quantizer for layer in layers]
            bare = bare_prediction_step(ready, logits)
            learning = learning_step(ready.unit, stage, ready.live, ready.target, layers, later=ready.later)
            rounding = [layer.weight_quantizer for layer in layers]
            ways = {"bare": (bare, plain), "pd_quant": (learning, rounding)}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(2 if quick else ROUNDS + 1):
                for way, (action, quantizers) in ways.items():
                    for layer, quantizer in zip(layers, quantizers, strict=True):
                        layer.weight_quantizer = quantizer
                        layer.weight.requires_grad_(way == "bare")
                    times[way].append(seconds_per_step(action)())
            for layer, quantizer in zip(layers, plain, strict=True):
                layer.weight_quantizer = quantizer
                layer.weight.requires_grad_(False)
            for way, taken in times.items():
                totals[way] += statistics.median(taken[1:])
        measured = f"{totals['pd_quant'] / totals['bare']:.2f} x {totals['bare'] * 1000:.0f} ms"
        show(f"a step of pd_quant, {name}, batch 32, 1 thread, all units", measured, "at most 1.3 x bare")


def caching(*, quick: bool) -> None:
    """What a stage takes beyond its iterations, in passes over the images through the float network."""
    for name, network, size, count in networks(quick=quick):
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


def peak(count: int, budget: float, *, quick: bool) -> float:
    """Peak memory in GiB of reconstructing a network on so many images with so many GiB of caches."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (count, budget, quick))


def _peak(count: int, budget: float, quick: bool) -> float:
    size = (3, 8, 8) if quick else (3, 224, 224)
    torch.manual_seed(0)
    student = student_of(CifarResNet(depth=8, width=2) if quick else models.resnet50(weights=None), size)
    images = images_of(count, size)
    memory = Memory(CPU, host_bytes=int(budget * 2**30))
    Reconstruction(student, images, context(), {"weights": Stage(1, rounding=Rounding())}, memory=memory).run("weights")
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - a file of the kernel
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def memory(counts: list[int], *, quick: bool) -> None:
    """Peak memory with caches in files."""
    for count in counts:
        network, side = ("ResNet-8 of width 2", 8) if quick else ("ResNet-50", 224)
        what = f"peak memory, {network}, {count} images of {count * 3 * side**2 * 4 / 2**30:.2f} GiB, caches of 1 GiB"
        show(what, f"{peak(count, 1.0, quick=quick):.2f} GiB", "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--only", choices=["steps", "prediction", "caching", "memory"])
    parser.add_argument("--settings", action="store_true", help="measure settings that are to be fast, and the release")
    parser.add_argument(
        "--networks", nargs="+", default=[], help="networks for steps and --settings, by the words before a comma"
    )
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    options = parser.parse_args()
    print(f"torch {torch.__version__}")
    if options.settings:
        settings_steps(options.networks, quick=options.quick)
        return
    if options.only in (None, "steps"):
        steps(options.networks, quick=options.quick)
    if options.only in (None, "prediction"):
        prediction(quick=options.quick)
    if options.only in (None, "caching"):
        caching(quick=options.quick)
    if options.only in (None, "memory"):
        memory([32] if options.quick else options.images, quick=options.quick)


if __name__ == "__main__":
    main()
