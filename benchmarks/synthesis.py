"""What a step of a generator costs: ratios to a bare forward and backward pass of the same network and images.

Run `python benchmarks/synthesis.py` on an otherwise idle machine; it prints one line for each figure, with the bound
that the project set itself. A bare step is a forward pass and a backward pass to the input, weights frozen; for GENIE,
through the network that makes the images, too. A generator's step adds statistics, losses, image pipeline and
optimiser. All are taken in turns, medians of several.

`--settings` measures settings that are to be fast instead, against the bare step in float32: bf16, channels_last and
compile, alone and together. Bounds for those are for CPUs with AMX and for GPUs. `--only NAME...` takes some methods,
`--device cuda` measures on a GPU. Generators that look at attention are measured on a DeiT-T, which needs timm.
`--quick` runs everything once on a tiny network, to see that it runs: its figures mean nothing.
"""

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torchvision
from torch import nn

import zsqbench
from zsqbench.methods import Generator, Settings
from zsqbench.plugins import load_plugins
from zsqbench.testing import tiny_transformer
from zsqbench.zoo.resnet import CifarResNet

BOUNDS = {
    "zeroq": 1.3,
    "zeroq_il": 1.15,
    "dsg": 1.3,
    "dsg_il": 1.3,
    "intraq": 1.3,
    "hast": 1.15,
    "genie": 1.15,
    "dgh": 1.15,
    "psaq_vit": 1.2,
}
"""What a step costs at most, in bare steps of the same settings: float32, uncompiled."""

COMPILED_BOUND = 1.3
"""The same where both are compiled."""

FAST_BOUNDS = {"zeroq": 0.42, "hast": 0.43, "dgh": 0.44, "intraq": 0.46, "genie": 0.69}
"""What a step costs at most in bf16, channels_last and compiled, in bare steps in float32: a fifth of the releases'."""

FAST = {"precision": "bf16", "layout": "channels_last", "compile": True}
EFFORT = {"repetitions": 5, "cpu": 3, "cuda": 30}
"""How often each way is measured, and how many steps are timed in one go on a device, after two that are not."""

QUICK = {"repetitions": 1, "cpu": 1, "cuda": 1}
"""The same with --quick."""


class Stopwatch:
    """A reporter that notes when each step was done, and keeps nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def log(self, name: str, value: object, step: int) -> None:
        """Forget it."""

    def progress(self, done: int, total: int) -> None:  # noqa: ARG002
        """Note the time."""
        self.times.append(time.perf_counter())

    def note(self, line: str) -> None:
        """Forget it."""

    def checkpoint(self, state: object) -> None:
        """Forget it."""

    def resume(self) -> None:
        """There is nothing."""


def under(settings: Settings, teacher: zsqbench.Pretrained) -> tuple[zsqbench.Pretrained, AbstractContextManager[None]]:
    """The teacher and the context that a worker would give a step with these settings."""
    module = copy.deepcopy(teacher.module)
    if settings.layout == "channels_last":
        module = module.to(memory_format=torch.channels_last)
    device = device_of(teacher)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)
    return zsqbench.Pretrained(**(vars(teacher) | {"module": module})), autocast


def device_of(teacher: zsqbench.Pretrained) -> torch.device:
    """Where the network is."""
    return next(teacher.module.parameters()).device


def generator_steps(name: str, teacher: zsqbench.Pretrained, batch: int, settings: Settings) -> Iterator[float]:
    """Seconds of a generator's steps after the first two, which are longer by what they prepare and compile."""
    watch, device = Stopwatch(), device_of(teacher)
    steps = EFFORT[device.type]
    options = {"images": batch, "batch_size": batch, "iterations": steps + 2}
    if name == "dgh":  # so that it has statistics of other images to keep
        options |= {"images": 2 * batch, "iterations": 1 + steps // 2 + 1}
    method = load_plugins().find("generator", name).method(**options)
    rng = torch.Generator(device).manual_seed(0)
    teacher, autocast = under(settings, teacher)
    with autocast:
        method.generate(teacher, zsqbench.StepContext(device, 0, rng, settings, watch))
    yield from (after - before for before, after in zip(watch.times[1:], watch.times[2:], strict=False))


def bare_steps(
    teacher: zsqbench.Pretrained, batch: int, settings: Settings, maker: nn.Module | None = None
) -> Iterator[float]:
    """Seconds of passes through the network alone, or through one that makes its images and then through it."""
    teacher, autocast = under(settings, teacher)
    device = device_of(teacher)
    network = teacher.module if maker is None else nn.Sequential(maker.to(device), teacher.module)
    shape = teacher.input_size if maker is None else (256,)
    start = torch.randn(batch, *shape, device=device).requires_grad_()
    run = torch.compile(network) if settings.compile else network
    with autocast:
        for step in range(EFFORT[device.type] + 2):
            started = time.perf_counter()
            network.zero_grad()
            start.grad = None
            run(start).float().square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()  # as a generator does, which reads each loss
            if step > 1:
                yield time.perf_counter() - started


def image_maker(teacher: zsqbench.Pretrained) -> nn.Module:
    """GENIE's network."""
    genie = load_plugins().find("generator", "genie").method
    return sys.modules[genie.__module__].image_network(256, teacher.input_size, torch.Generator().manual_seed(0))


def medians(ways: dict[str, Callable[[], Iterator[float]]]) -> dict[str, float]:
    """Seconds of each way, all taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(EFFORT["repetitions"]):
        for name, way in ways.items():
            seconds[name] += way()
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(what: str, module: nn.Module, batch: int, side: int, names: list[str], *, compiled: bool) -> None:
    """Print the ratios of generators on one network, in float32."""
    teacher = pretrained(module, side)
    settings = Settings(compile=compiled)
    ways: dict[str, Callable[[], Iterator[float]]] = {"bare": lambda: bare_steps(teacher, batch, settings)}
    if "genie" in names:
        ways["bare with its generator"] = lambda: bare_steps(teacher, batch, settings, image_maker(teacher))
    for name in names:
        ways[name] = lambda name=name: generator_steps(name, teacher, batch, settings)
    times = medians(ways)
    for name in names:
        bare = times["bare with its generator" if name == "genie" else "bare"]
        ratio, bound = times[name] / bare, COMPILED_BOUND if compiled else BOUNDS[name]
        held = "held" if ratio <= bound else "MISSED"
        how = f"{what}, compiled" if compiled else what
        print(f"{name:8} {how:46} {ratio:5.2f} x {bare:6.3f} s (at most {bound} x: {held})", flush=True)


def measure_settings(what: str, module: nn.Module, batch: int, side: int, names: list[str]) -> None:
    """Print what steps cost under settings that are to be fast, in bare steps in float32."""
    teacher = pretrained(module, side)
    parts = [{}, {"layout": "channels_last"}, {"precision": "bf16", "layout": "channels_last"}, {"compile": True}, FAST]
    ways = {"bare": lambda: bare_steps(teacher, batch, Settings())}
    for part in parts:
        for name in names:
            ways[f"{name} {part}"] = lambda name=name, part=part: generator_steps(
                name, teacher, batch, Settings(**part)
            )
    times = medians(ways)
    for name in names:
        for part in parts:
            ratio = times[f"{name} {part}"] / times["bare"]
            said = ", ".join(f"{key} {value}" for key, value in part.items()) or "default"
            bound = f" (with AMX at most {FAST_BOUNDS[name]})" if part == FAST and name in FAST_BOUNDS else ""
            print(f"{name:8} {what:28} {said:56} {ratio:5.2f} x {times['bare']:6.3f} s{bound}", flush=True)


def pretrained(module: nn.Module, side: int) -> zsqbench.Pretrained:
    """A network as methods are given it."""
    frozen = module.eval().requires_grad_(False)
    return zsqbench.Pretrained(frozen, (3, side, side), (0.5,) * 3, (0.25,) * 3, classes=10 if side < 64 else 1000)


def memory(batch: int, counts: tuple[int, ...]) -> None:
    """Print how DGH's memory grows with the number of batches, apart from images, their optimiser and moments.

    Each count runs in a process of its own, whose peak is read when it is done.
    """
    few, side = 2, 32
    extra = round(32 * side / 224)
    channels = sum(norm.num_features for norm in CifarResNet(20).modules() if isinstance(norm, nn.BatchNorm2d)) + 3
    # pixels, two moments of RAdam, finished images (twice, while they are put together), mean and variance of channels
    kept = 4 * batch * 3 * ((side + extra) ** 2 * 3 + 2 * side**2) + 8 * channels
    least = peak_of(few, batch)
    print(f"dgh    peak memory of {few:2} batches of {batch}: {least / 2**20:.0f} MB")
    for count in counts:
        grown, known = (peak_of(count, batch) - least) / 2**20, (count - few) * kept / 2**20
        print(f"dgh    {count:2} batches: {grown:+.0f} MB, of which images, optimiser and moments are {known:.0f}")


def peak_of(batches: int, batch: int) -> int:
    """Bytes of resident memory at most, of a process that generates this many batches of so many images."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import synthesis, torch; torch.set_num_threads(1);"
        "synthesis.generate_batches(int(sys.argv[2]), int(sys.argv[3]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(batches), str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def generate_batches(count: int, batch: int) -> None:
    """DGH on a ResNet-20, two steps for each batch."""
    dgh = load_plugins().find("generator", "dgh").method(images=batch * count, batch_size=batch, iterations=2)
    rng = torch.Generator().manual_seed(0)
    ctx = zsqbench.StepContext(torch.device("cpu"), 0, rng, Settings(), Stopwatch())
    dgh.generate(pretrained(CifarResNet(20), 32), ctx)


def networks(
    names: list[str], *, small: bool, quick: bool
) -> Iterator[tuple[str, Callable[[], nn.Module], int, int, list[str]]]:
    """Generators are measured on these: name, network, images and their side, and which generators."""
    attending = [name for name in names if looks_at_attention(name)]
    others = [name for name in names if name not in attending]
    if quick:
        yield "ResNet-20 of width 2, 4 x 8 px", lambda: CifarResNet(20, width=2), 4, 8, others
        yield "transformer of width 8, 4 x 8 px", lambda: tiny_transformer().module, 4, 8, attending
        return
    if others:
        yield "ResNet-20, 256 x 32 px", lambda: CifarResNet(20), 256, 32, others
        if not small:
            yield "ResNet-18, 16 x 224 px", torchvision.models.resnet18, 16, 224, others
    if attending and not small:
        yield "DeiT-T, 8 x 224 px", deit, 8, 224, attending


def looks_at_attention(name: str) -> bool:
    """True if a generator is measured on a transformer."""
    method = load_plugins().find("generator", name).method
    return issubclass(method, Generator) and method.needs_attention


def deit() -> nn.Module:
    """A DeiT-T of timm with random weights."""
    import timm

    return timm.create_model("deit_tiny_patch16_224")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", action="store_true", help="measure settings that are to be fast")
    parser.add_argument("--compiled", action="store_true", help="measure compiled steps against a compiled bare step")
    parser.add_argument("--only", nargs="+", choices=BOUNDS, default=list(BOUNDS), help="methods")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--small", action="store_true", help="leave the ResNet-18 out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        EFFORT.update(QUICK)
    on_gpu = arguments.device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    print(f"{where}, torch {torch.__version__}")
    torch.backends.cudnn.allow_tf32 = False  # as in a worker: fp32 is fp32
    if not (arguments.settings or arguments.compiled or on_gpu):
        memory(*((4, ()) if arguments.quick else (64, (8, 32))))
    for threads in [1] if on_gpu or arguments.quick else arguments.threads:
        torch.set_num_threads(threads)
        for what, make, batch, side, names in networks(arguments.only, small=arguments.small, quick=arguments.quick):
            said, module = what if on_gpu else f"{what}, {threads} thread(s)", make().to(arguments.device)
            if arguments.settings:
                measure_settings(said, module, batch, side, names)
            else:
                measure(said, module, batch, side, names, compiled=arguments.compiled)


if __name__ == "__main__":
    main()
