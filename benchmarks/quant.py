"""Measure the quantization library: `python benchmarks/quant.py`. Ratios, all of one run; seconds are of this machine.

Networks have seeded random weights of realistic spread: ranges and shapes decide the time, not what they recognise.
`--quick` takes a tiny network and few values everywhere, to see that it runs: its figures mean nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torchvision import models

from zsqbench import CalibrationSet, Pretrained
from zsqbench.plugins import load_plugins
from zsqbench.quant import calibrate_weights, lp_search, prepare
from zsqbench.quant.inspection import check_student
from zsqbench.quant.ranges import observers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context
from zsqbench.zoo.resnet import CifarResNet


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def show(what: str, measured: str, bound: str) -> None:
    """One line of the report."""
    print(f"{what:<72} {measured:>22}   {bound}")


def pretrained(build: Callable[[], nn.Module], side: int) -> Pretrained:
    """A network as methods are given it."""
    torch.manual_seed(0)
    network = build().eval().requires_grad_(False)
    return Pretrained(network, (3, side, side), (0.0,) * 3, (1.0,) * 3, classes=1000)


def equality(teacher: Pretrained) -> None:
    """A student of a transformer, and the check that it gives what the network gives."""
    scheme = parse_scheme("hw_strict/w8a8")
    took = seconds(lambda: check_student(teacher.module, scheme, teacher.input_size))
    what = f"capture and equality check of {type(teacher.module).__name__}, {teacher.input_size[1]} px"
    show(f"{what}, {torch.get_num_threads()} threads", f"{took:.1f} s", "under 15 s for vit_b_16, 2 threads")


def vit() -> nn.Module:
    """A vision transformer that is small."""
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)


def weight_search(teacher: Pretrained) -> None:
    """All weights, per output channel, by the L_p search of 80 candidates."""
    student = prepare(teacher.module, parse_scheme("hw/w4a4"), teacher.input_size)
    count = sum(parameter.numel() for parameter in student.parameters())
    took = min(seconds(lambda: calibrate_weights(student, "mse")) for _ in range(2))
    what = f"L_p search over {count / 1e6:.1f} million weights of {type(teacher.module).__name__}"
    show(what, f"{took:.1f} s", "at most 20 s for ResNet-50")


def activation_search(count: int, widths: Iterable[int]) -> None:
    """The same search for one tensor after ReLU, against all candidates on all elements."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    drop = observers._contenders  # noqa: SLF001
    for bits in widths:
        fast = statistics.median(seconds(lambda: lp_search(values, bits)) for _ in range(5))  # noqa: B023
        observers._contenders = lambda _, candidates, __: torch.arange(len(candidates.scale))  # noqa: SLF001
        exhaustive = statistics.median(seconds(lambda: lp_search(values, bits)) for _ in range(3))  # noqa: B023
        observers._contenders = drop  # noqa: SLF001
        what = f"L_p search over an activation of {count / 1e6:.1f} million values, {bits} bits"
        bound = "at least 8 times as fast" if bits == 4 else ""
        show(what, f"{fast:.3f} s, {exhaustive / fast:.1f} times", bound)


def squant(teacher: Pretrained) -> None:
    """SQuant: all weights, and activations on one batch of noise."""
    quantizer = load_plugins().find("quantizer", "squant").method()
    for scheme in ("hw/w4a32", "hw/w4a4"):
        student = quantizer.prepare(teacher, parse_scheme(scheme))
        took = seconds(lambda: quantizer.quantize(student, teacher, None, context()))  # noqa: B023
        what = f"squant on {type(teacher.module).__name__}, {teacher.input_size[1]} px, {scheme}"
        show(what, f"{took:.1f} s", "at most 5 s for ResNet-18")


def comq(teacher: Pretrained, count: int) -> None:
    """COMQ on so many images, with all threads."""
    images = torch.randn(count, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    quantizer = load_plugins().find("quantizer", "comq").method()
    student = quantizer.prepare(teacher, parse_scheme("hw/w4a4"))
    took = seconds(lambda: quantizer.quantize(student, teacher, CalibrationSet(images), context()))
    what = f"comq on {type(teacher.module).__name__}, {teacher.input_size[1]} px, {count} images"
    show(
        f"{what}, {torch.get_num_threads()} threads", f"{took:.1f} s", "under 60 s for ResNet-18, 64 images, 2 threads"
    )


def hptq(teacher: Pretrained, count: int) -> None:
    """HPTQ against forward passes of the float network over the same images."""
    images = torch.randn(count, *teacher.input_size, generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            for batch in images.split(16):
                teacher.module(batch)

    for options in ({}, {"weights": "power_of_two"}, {"preset": "paper"}):
        quantizer = load_plugins().find("quantizer", "hptq").method(batch_size=16, **options)
        student = quantizer.prepare(teacher, parse_scheme("hw_strict/w8a8"))
        passes = [seconds(forward)]
        took = seconds(lambda: quantizer.quantize(student, teacher, CalibrationSet(images), context()))  # noqa: B023
        passes.append(seconds(forward))
        bare = statistics.median(passes)
        allowed = f"at most 2 passes + 20 s = {2 * bare + 20:.1f} s"
        measured = f"{took:.1f} s ({bare:.1f} s a pass)"
        show(f"hptq {options or 'released'} on {type(teacher.module).__name__}, {count} images", measured, allowed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    if quick:
        torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    large, small = (models.resnet50, models.resnet18) if not quick else (lambda: CifarResNet(20, width=2),) * 2
    side, images = (32, 2) if quick else (224, 64)
    equality(pretrained(models.vit_b_16 if not quick else vit, side))
    weight_search(pretrained(large, side))
    activation_search(*((50_000, [4]) if quick else (4_200_000, [2, 4, 8])))
    squant(pretrained(small, side))
    hptq(pretrained(small, side), images)
    comq(pretrained(small, side), images)


if __name__ == "__main__":
    main()
