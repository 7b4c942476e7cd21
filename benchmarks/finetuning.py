"""What an update of a quantizer that trains costs: ratios to the passes that it cannot do without.

Run `python benchmarks/finetuning.py` on an otherwise idle machine; it prints one line for each figure, with the bound
that the project set itself. Bare for `ste`: a forward pass of the float network, one forward and backward pass of a
float student, and its optimiser's step. Bare for `hast`: two forward passes of each, a backward pass to images and
parameters through both networks, for the release differentiates through the float network, too, one backward pass to
parameters, and the optimiser's step. Augmentation is measured by itself. `synq` is measured against `hast`, less what
Grad-CAM cannot do without: one backward pass of each network from the class score to the last map.

`--settings` measures settings that are to be fast, against what the releases of IntraQ and HAST do in an update in
float32 (`released_updates`), which is written anew here: their code itself took 0.81 and 2.29 seconds for an update of
a ResNet-20 on two cores with AMX, on another day. All are taken in turns, medians of several. `--quick` runs everything
once on a tiny network, to see that it runs: its figures mean nothing.
"""

import argparse
import copy
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from synthesis import EFFORT, FAST, QUICK, Stopwatch, device_of, medians, pretrained, under
from torch import nn
from torch.nn import functional
from torchvision import transforms

import zsqbench
from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.quant import alignment_loss, kl_divergence
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import random_crops, resized_crops
from zsqbench.zoo.resnet import CifarResNet

BOUND = 1.25
AUGMENTATION_BOUND = 0.03
SYNQ_BOUND = 1.25
"""The most that an update of `synq` may cost without these backward passes, in updates of `hast`."""

FASTER = {"ste": (1.2, 3.0), "hast": (1.5, 3.0)}
"""How many times as fast as the release an update is to be, in float32 and with all settings that are to be fast."""

BITS = 4
SCHEME = f"hast/w{BITS}a{BITS}"


class Silent(Stopwatch):
    """A stopwatch that takes epochs, too, and forgets them."""

    def keep_epoch(self, epoch: int, student: object) -> None:
        """Forget it."""


def updates(name: str, teacher: zsqbench.Pretrained, batch: int, settings: Settings) -> Iterator[float]:
    """Seconds of a quantizer's updates after the first two."""
    watch, device = Silent(), device_of(teacher)
    count = EFFORT[device.type] + 2
    options = {"epochs": 1, "updates_per_epoch": count, "batch_size": batch, "range_updates": 1}
    method = load_plugins().find("quantizer", name).method(**options)
    rng = torch.Generator(device).manual_seed(0)
    images = torch.randn(2 * batch, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    teacher, autocast = under(settings, teacher)
    with autocast:
        student = method.prepare(teacher, parse_scheme(SCHEME))
        method.quantize(
            student, teacher, zsqbench.CalibrationSet(images), zsqbench.StepContext(device, 0, rng, settings, watch)
        )
    yield from (after - before for before, after in zip(watch.times[1:], watch.times[2:], strict=False))


def bare_updates(name: str, teacher: zsqbench.Pretrained, batch: int, settings: Settings) -> Iterator[float]:
    """Seconds of the passes alone."""
    teacher, autocast = under(settings, teacher)
    device, network = device_of(teacher), teacher.module
    student = copy.deepcopy(network).requires_grad_(True)
    parameters = list(student.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch, *teacher.input_size, device=device)
    teach, learn = (torch.compile(each) if settings.compile else each for each in (network, student))
    with autocast:
        for update in range(EFFORT[device.type] + 2):
            started = time.perf_counter()
            optimizer.zero_grad()
            if name == "ste":
                with torch.no_grad():
                    expected = teach(images)
                distance(learn(images), expected).backward()
            else:
                images = images.detach().requires_grad_()
                distance(learn(images), teach(images)).backward()
                harder = images.detach()
                with torch.no_grad():
                    expected = teach(harder)
                distance(learn(harder), expected).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if update > 1:
                yield time.perf_counter() - started


class ReleasedRounding(torch.autograd.Function):
    """Rounding as the releases do it: operation by operation, with a gradient that passes unchanged."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor, bits: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """X on the grid from low to high, tensors that have its dimensions."""
        half = 2 ** (bits - 1)
        scale = (2**bits - 1) / torch.clamp(high - low, min=1e-8)
        zero = torch.round(scale * low) + half
        codes = torch.clamp(torch.round(scale * x - zero), -half, half - 1)
        return (codes + zero) / scale

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # type: ignore[override]
        """The gradient, as it is."""
        return gradient, None, None, None


class ReleasedLayer(nn.Module):
    """A layer that spans and rounds its weight in each forward pass."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer makes of x with a rounded weight."""
        rows = self.layer.weight.detach().flatten(1)
        shape = (-1, *[1] * (self.layer.weight.dim() - 1))
        low, high = (end.values.view(shape) for end in (rows.min(1), rows.max(1)))
        weight = ReleasedRounding.apply(self.layer.weight, BITS, low, high)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return functional.conv2d(x, weight, self.layer.bias, self.layer.stride, self.layer.padding)


class ReleasedActivation(nn.Module):
    """A ReLU whose result is rounded on a range that was learned before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As it says."""
        return ReleasedRounding.apply(functional.relu(x), BITS, x.new_zeros(()), x.new_full((), 4.0))


def released_student(network: nn.Module) -> nn.Module:
    """A copy whose layers and ReLUs round."""
    student = copy.deepcopy(network)
    for path, module in list(student.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            student.set_submodule(path, ReleasedLayer(module))
        elif isinstance(module, nn.ReLU):
            student.set_submodule(path, ReleasedActivation())
    return student


def released_updates(name: str, teacher: zsqbench.Pretrained, batch: int) -> Iterator[float]:
    """Seconds of what the release does in an update: IntraQ's for `ste`, HAST's for `hast`, in float32.

    Images are augmented one by one, and weights spanned and rounded in each pass. HAST's float network collects
    gradients of its weights, too, that nobody reads, and the direction in which images become harder is a backward pass
    of its own, through both networks.
    """
    device, network = device_of(teacher), copy.deepcopy(teacher.module).requires_grad_(True)
    student = released_student(network)
    blocks = ("layer1", "layer2", "layer3")
    features: dict[nn.Module, list[torch.Tensor]] = {network: [], student: []}
    for each in (network, student) if name == "hast" else ():
        for norm in (block.bn2 for stage in blocks for block in each.get_submodule(stage)):
            norm.register_forward_hook(lambda _, __, output, each=each: features[each].append(output))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-9, momentum=0.9, nesterov=True, weight_decay=1e-4)
    drawn, labels = torch.randn(batch, *teacher.input_size, device=device), torch.zeros(batch).long().to(device)
    augment = transforms.Compose(
        [transforms.RandomResizedCrop(teacher.input_size[1], scale=(0.5, 1)), transforms.RandomHorizontalFlip()]
    )

    def loss(images: torch.Tensor, *, graph: bool) -> torch.Tensor:
        for kept in features.values():
            kept.clear()
        with torch.set_grad_enabled(graph):
            expected = network(images)
        logits = student(images)
        total = 20 * kl_divergence(logits, expected, 20.0)
        if name == "ste":
            return total + functional.cross_entropy(logits, labels)
        return total + 1000 * alignment_loss(features[student], features[network])

    for update in range(EFFORT[device.type] + 2):
        started = time.perf_counter()
        images = torch.stack([augment(image) for image in drawn])
        if name == "ste":
            total = loss(images, graph=False)
        else:
            images.requires_grad_()
            clean = loss(images, graph=True)
            (direction,) = torch.autograd.grad(clean, images, retain_graph=True)
            total = clean + loss((images + 0.01 * direction.sign()).detach(), graph=False)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if update > 1:
            yield time.perf_counter() - started


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Some loss."""
    return (ours.float() - theirs.float()).square().mean()


def augmentations(batch: int, size: tuple[int, int, int], device: torch.device) -> Iterator[float]:
    """Seconds of cropping and flipping a batch."""
    images, rng = torch.randn(batch, *size, device=device), torch.Generator(device).manual_seed(0)
    for _ in range(EFFORT[device.type] + 2):
        started = time.perf_counter()
        resized_crops(images, random_crops(images.shape, 0.5, rng))
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - started


def class_scores(teacher: zsqbench.Pretrained, batch: int) -> Iterator[float]:
    """Seconds of a backward pass from the class score to the last map, in the float network and in another one."""
    device, seen = device_of(teacher), list[torch.Tensor]()
    networks = [copy.deepcopy(teacher.module).requires_grad_(True) for _ in range(2)]
    images = torch.randn(batch, *teacher.input_size, device=device)
    for network in networks:
        last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        last.register_forward_hook(lambda _, __, output: seen.append(output))
    for _ in range(EFFORT[device.type] + 2):
        seen.clear()
        scores = [network(images).amax(1).sum() for network in networks]
        started = time.perf_counter()
        for score, maps in zip(scores, seen, strict=True):
            torch.autograd.grad(score, maps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - started


def measure(what: str, teacher: zsqbench.Pretrained, batch: int, names: list[str], *, compiled: bool) -> None:
    """Print the ratios in float32."""
    settings = Settings(compile=compiled)
    ways: dict[str, Callable[[], Iterator[float]]] = {}
    for name in names:
        ways[f"bare {name}"] = lambda name=name: bare_updates(name, teacher, batch, settings)
        ways[name] = lambda name=name: updates(name, teacher, batch, settings)
    if "hast" in names:
        ways["synq"] = lambda: updates("synq", teacher, batch, settings)
        ways["class scores"] = lambda: class_scores(teacher, batch)
    ways["augmentation"] = lambda: augmentations(batch, teacher.input_size, device_of(teacher))
    times = medians(ways)
    for name in names:
        ratio = times[name] / times[f"bare {name}"]
        show(name, what, ratio, f"x {times[f'bare {name}']:.4f} s", BOUND)
    if "hast" in names:
        ratio = (times["synq"] - times["class scores"]) / times["hast"]
        show("synq", what, ratio, f"x an update of hast, {times['hast']:.4f} s", SYNQ_BOUND)
    part = times["augmentation"] / times[names[0]]
    show("augmentation", what, part, f"of an update of {names[0]}", AUGMENTATION_BOUND)


def measure_settings(what: str, teacher: zsqbench.Pretrained, batch: int, names: list[str]) -> None:
    """Print seconds under settings that are to be fast."""
    parts = [{}, {"compile": True}, {"precision": "bf16", "layout": "channels_last"}, FAST]
    ways = {
        f"{name} {part}": lambda name=name, part=part: updates(name, teacher, batch, Settings(**part))
        for part in parts
        for name in names
    }
    for name in names:
        ways[f"released {name}"] = lambda name=name: released_updates(name, teacher, batch)
    times = medians(ways)
    for name in names:
        for part in parts:
            seconds = times[f"{name} {part}"]
            said = ", ".join(f"{key} {value}" for key, value in part.items()) or "default"
            faster = times[f"released {name}"] / seconds
            in_float32 = "precision" not in part
            bound = FASTER[name][0] if in_float32 else FASTER[name][1] if part == FAST else None
            held = "" if bound is None else f" (at least {bound}: {'held' if faster >= bound else 'MISSED'})"
            print(
                f"{name:13} {what}, {said:56} {seconds:7.4f} s, {faster:5.2f} x as fast as released{held}", flush=True
            )


def show(name: str, what: str, figure: float, unit: str, bound: float) -> None:
    """One line for one figure."""
    print(
        f"{name:13} {what:40} {figure:6.3f} {unit} (at most {bound}: {'held' if figure <= bound else 'MISSED'})",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", action="store_true", help="measure settings that are to be fast")
    parser.add_argument("--compiled", action="store_true", help="measure compiled updates against compiled passes")
    parser.add_argument("--only", nargs="+", choices=FASTER, default=list(FASTER), help="methods")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        EFFORT.update(QUICK)
    threads = 1 if arguments.quick else arguments.threads
    on_gpu = arguments.device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    print(f"{where}, torch {torch.__version__}, {threads} thread(s)")
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # as in a worker: fp32 is fp32
    width, batch, side = (2, 4, 8) if arguments.quick else (16, 256, 32)
    teacher = pretrained(CifarResNet(20, width=width).to(arguments.device), side)
    what = f"ResNet-20, {batch} x {side} px"
    if arguments.settings:
        measure_settings(what, teacher, batch, arguments.only)
    else:
        measure(what, teacher, batch, arguments.only, compiled=arguments.compiled)


if __name__ == "__main__":
    main()
