"""What a step of a generator costs: ratios to a bare forward and backward pass of the same network and images.

Run `python benchmarks/synthesis.py` on an otherwise idle machine; it prints one line for each figure, with the bound
that the project set itself. A bare step is a forward pass and a backward pass to the input, weights frozen, in float32;
a generator's step adds statistics, losses, image pipeline and optimiser. Both are taken in turns, medians of several.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn

import zsqbench
from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.zoo.resnet import CifarResNet

BOUND = 1.6
REPETITIONS = 5
STEPS = 3


class Stopwatch:
    """A reporter that notes when each step was done, and keeps nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def log(self, name: str, value: object, step: int) -> None:
        """Forget it."""

    def progress(self, done: int, total: int) -> None:  # noqa: ARG002
        """Note the time."""
        self.times.append(time.perf_counter())

    def checkpoint(self, state: object) -> None:
        """Forget it."""

    def resume(self) -> None:
        """There is nothing."""


def generator_steps(method: zsqbench.Generator, teacher: zsqbench.Pretrained) -> Iterator[float]:
    """Seconds of a generator's steps after the first, which is longer by what it prepares."""
    watch = Stopwatch()
    rng = torch.Generator().manual_seed(0)
    method.generate(teacher, zsqbench.StepContext(torch.device("cpu"), 0, rng, Settings(), watch))
    yield from (after - before for before, after in zip(watch.times, watch.times[1:], strict=False))


def bare_steps(teacher: zsqbench.Pretrained, images: torch.Tensor) -> Iterator[float]:
    """Seconds of passes through the network alone."""
    images = images.clone().requires_grad_()
    for _ in range(STEPS):
        started = time.perf_counter()
        images.grad = None
        teacher.module(images).square().mean().backward()
        yield time.perf_counter() - started


def measure(what: str, module: nn.Module, batch: int, side: int) -> None:
    """Print the ratios of all generators on one network."""
    teacher = zsqbench.Pretrained(module.eval().requires_grad_(False), (3, side, side), (0.5,) * 3, (0.25,) * 3)
    images = torch.randn(batch, 3, side, side)
    find = load_plugins().find
    zeroq = find("generator", "zeroq").method(images=batch, batch_size=batch, iterations=STEPS + 1)
    dgh = find("generator", "dgh").method(images=2 * batch, batch_size=batch, iterations=1 + STEPS // 2)
    ways: dict[str, Callable[[], Iterator[float]]] = {
        "bare": lambda: bare_steps(teacher, images),
        "zeroq": lambda: generator_steps(zeroq, teacher),
        "dgh": lambda: generator_steps(dgh, teacher),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPETITIONS):
        for name, way in ways.items():
            seconds[name] += way()
    bare = statistics.median(seconds["bare"])
    for name in ("zeroq", "dgh"):
        ratio = statistics.median(seconds[name]) / bare
        held = "held" if ratio <= BOUND else "MISSED"
        print(f"{name:6} {what:36} {ratio:5.2f} x {bare:6.3f} s (at most {BOUND} x: {held})", flush=True)


def memory() -> None:
    """Print how DGH's memory grows with the number of batches, apart from images, their optimiser and moments.

    Each count runs in a process of its own, whose peak is read when it is done.
    """
    few, batch, side = 2, 64, 32
    extra = round(32 * side / 224)
    channels = sum(norm.num_features for norm in CifarResNet(20).modules() if isinstance(norm, nn.BatchNorm2d)) + 3
    # pixels, two moments of RAdam, finished images (twice, while they are put together), mean and variance of channels
    kept = 4 * batch * 3 * ((side + extra) ** 2 * 3 + 2 * side**2) + 8 * channels
    least = peak_of(few)
    print(f"dgh    peak memory of {few:2} batches of {batch}: {least / 2**20:.0f} MB")
    for count in (8, 32):
        grown, known = (peak_of(count) - least) / 2**20, (count - few) * kept / 2**20
        print(f"dgh    {count:2} batches: {grown:+.0f} MB, of which images, optimiser and moments are {known:.0f}")


def peak_of(batches: int) -> int:
    """Bytes of resident memory at most, of a process that generates this many batches."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import synthesis, torch; torch.set_num_threads(1);"
        "synthesis.generate_batches(int(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(batches)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def generate_batches(count: int) -> None:
    """DGH on a ResNet-20, two steps for each batch of 64."""
    teacher = zsqbench.Pretrained(
        CifarResNet(20).eval().requires_grad_(False), (3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=10
    )
    dgh = load_plugins().find("generator", "dgh").method(images=64 * count, batch_size=64, iterations=2)
    list(generator_steps(dgh, teacher))


def main() -> None:
    """Measure and print."""
    memory()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        measure(f"ResNet-20, 256 x 32 px, {threads} thread(s)", CifarResNet(20), batch=256, side=32)
        measure(f"ResNet-18, 16 x 224 px, {threads} thread(s)", torchvision.models.resnet18(), batch=16, side=224)


if __name__ == "__main__":
    main()
