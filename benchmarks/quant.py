"""Measure the quantization library: `python benchmarks/quant.py`. Ratios, all of one run; seconds are of this machine.

Networks have seeded random weights of realistic spread: ranges and shapes decide the time, not what they recognise.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torchvision import models

from zsqbench import CalibrationSet, Pretrained
from zsqbench.plugins import load_plugins
from zsqbench.quant import calibrate_weights, lp_search, prepare
from zsqbench.quant.ranges import observers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context

IMAGES = 64


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def show(what: str, measured: str, bound: str) -> None:
    """One line of the report."""
    print(f"{what:<72} {measured:>22}   {bound}")


def weight_search() -> None:
    """All weights of ResNet-50, per output channel, by the L_p search of 80 candidates."""
    torch.manual_seed(0)
    network = models.resnet50(weights=None).eval().requires_grad_(False)
    student = prepare(network, parse_scheme("hw/w4a4"), (3, 224, 224))
    count = sum(parameter.numel() for parameter in student.parameters())
    took = min(seconds(lambda: calibrate_weights(student, "mse")) for _ in range(2))
    show(f"L_p search over {count / 1e6:.1f} million weights of ResNet-50", f"{took:.1f} s", "at most 20 s")


def activation_search() -> None:
    """The same search for one tensor after ReLU, against all candidates on all elements."""
    values = torch.randn(4_200_000, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    drop = observers._contenders  # noqa: SLF001
    for bits in (2, 4, 8):
        fast = statistics.median(seconds(lambda: lp_search(values, bits)) for _ in range(5))  # noqa: B023
        observers._contenders = lambda _, candidates, __: torch.arange(len(candidates.scale))  # noqa: SLF001
        exhaustive = statistics.median(seconds(lambda: lp_search(values, bits)) for _ in range(3))  # noqa: B023
        observers._contenders = drop  # noqa: SLF001
        what = f"L_p search over an activation of 4.2 million values, {bits} bits"
        bound = "at least 8 times as fast" if bits == 4 else ""
        show(what, f"{fast:.3f} s, {exhaustive / fast:.1f} times", bound)


def squant() -> None:
    """SQuant on ResNet-18 at 224 pixels: all weights, and activations on one batch of noise."""
    torch.manual_seed(0)
    network = models.resnet18(weights=None).eval().requires_grad_(False)
    teacher = Pretrained(network, (3, 224, 224), (0.0,) * 3, (1.0,) * 3, classes=1000)
    quantizer = load_plugins().find("quantizer", "squant").method()
    for scheme in ("hw/w4a32", "hw/w4a4"):
        student = quantizer.prepare(teacher, parse_scheme(scheme))
        took = seconds(lambda: quantizer.quantize(student, teacher, None, context()))  # noqa: B023
        show(f"squant on ResNet-18, {scheme}", f"{took:.1f} s", "at most 5 s")


def hptq() -> None:
    """HPTQ on ResNet-18 at 224 pixels against forward passes of the float network over the same images."""
    torch.manual_seed(0)
    network = models.resnet18(weights=None).eval().requires_grad_(False)
    teacher = Pretrained(network, (3, 224, 224), (0.0,) * 3, (1.0,) * 3, classes=1000)
    images = torch.randn(IMAGES, *teacher.input_size, generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            for batch in images.split(16):
                network(batch)

    for options in ({}, {"weights": "power_of_two"}, {"preset": "paper"}):
        quantizer = load_plugins().find("quantizer", "hptq").method(batch_size=16, **options)
        student = quantizer.prepare(teacher, parse_scheme("hw_strict/w8a8"))
        passes = [seconds(forward)]
        took = seconds(lambda: quantizer.quantize(student, teacher, CalibrationSet(images), context()))  # noqa: B023
        passes.append(seconds(forward))
        bare = statistics.median(passes)
        allowed = f"at most 2 passes + 20 s = {2 * bare + 20:.1f} s"
        measured = f"{took:.1f} s ({bare:.1f} s a pass)"
        show(f"hptq {options or 'released'} on ResNet-18, {IMAGES} images", measured, allowed)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    weight_search()
    activation_search()
    squant()
    hptq()
