"""The kit for plugin authors: checks that a method keeps the contract that the harness relies on.

Each check runs a method on a tiny network on the CPU and raises AssertionError with one sentence where it does not.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from zsqbench.methods import (
    CalibrationSet,
    Evaluation,
    Generator,
    Method,
    ModelSpec,
    Pretrained,
    Quantizer,
    Settings,
    Task,
    TaskContext,
)
from zsqbench.quant import finalize, restore
from zsqbench.scheme import parse_scheme
from zsqbench.worker import check_calibration_set


class _TinyNet(nn.Module):
    """Convolutions with batch normalisation, a residual sum, a depthwise convolution, pooling and a classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.classifier = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        features = torch.relu(self.inner(features) + features)
        logits: torch.Tensor = self.classifier(self.depthwise(features).mean((2, 3)))
        return logits


def tiny_teacher(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> Pretrained:
    """A network with seeded random weights and believable BN statistics, small enough for a test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = _TinyNet(input_size[0], classes)
        for _ in range(20):  # running statistics of what the network computes on noise
            module(torch.randn(32, *input_size))
    channels = input_size[0]
    module.eval().requires_grad_(False)
    return Pretrained(module, input_size, mean=(0.5,) * channels, std=(0.25,) * channels, classes=classes)


class MemoryReporter:
    """Keeps what a method reports, and every state that it offers as a checkpoint."""

    def __init__(self, resume_from: Mapping[str, Any] | None = None, rng: torch.Generator | None = None) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.notes: list[str] = []
        self.states: list[dict[str, Any]] = []
        self._resume_from = resume_from
        self._rng = rng

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Keep a point of a curve."""
        value = value.detach() if isinstance(value, torch.Tensor) else value
        self.curves.setdefault(name, []).append((step, float(value)))

    def progress(self, done: int, total: int) -> None:
        """Check that it makes sense."""
        assert 0 <= done <= total, f"progress {done} of {total}"  # noqa: S101 - this is a check

    def note(self, line: str) -> None:
        """Keep a line."""
        self.notes.append(line)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a copy of a state, as a file would."""
        state = {
            name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in state.items()
        }
        state |= {"rng": self._rng.get_state()} if self._rng else {}
        self.states.append(copy.deepcopy(state))

    def resume(self) -> dict[str, Any] | None:
        """The state to go on from, with the random generator set back."""
        if self._resume_from is None:
            return None
        state = copy.deepcopy(dict(self._resume_from))
        if self._rng is not None:
            self._rng.set_state(state.pop("rng"))
        return state


def context(seed: int = 0, resume_from: Mapping[str, Any] | None = None, data_root: Path | None = None) -> TaskContext:
    """A context on the CPU, as a worker would give it; its reporter keeps everything in memory."""
    rng = torch.Generator().manual_seed(seed)
    reporter = MemoryReporter(resume_from, rng)
    return TaskContext(torch.device("cpu"), seed, rng, Settings(), reporter, data_root=data_root)


def check_generator(generator: Generator, teacher: Pretrained | None = None) -> CalibrationSet:
    """Check a generator; returns the images that it made with seed 0.

    Checked: count, shape, type and finiteness of the images; the same seed gives the same images, another seed others
    (unless it is not `seeded`); going on from any checkpoint gives the same images; teacher, hooks, gradient mode and
    global random state are left as they were.
    """
    _check_options(generator)
    teacher = teacher or tiny_teacher()

    def generate(seed: int, resume_from: Mapping[str, Any] | None = None) -> tuple[CalibrationSet, list[Any]]:
        ctx = context(seed, resume_from)
        if generator.uses_real_data:
            ctx.real_images = CalibrationSet(torch.randn(generator.images, *teacher.input_size, generator=ctx.rng))
        made = _untouched(teacher, lambda copied: generator.generate(copied, ctx), generator)
        check_calibration_set(made, teacher, generator.name)
        return made, cast("MemoryReporter", ctx.reporter).states

    made, states = generate(0)
    again, _ = generate(0)
    _require(torch.equal(made.images, again.images), generator, "gave two different sets for one seed")
    if generator.seeded:
        other, _ = generate(1)
        _require(not torch.equal(made.images, other.images), generator, "is seeded, and gave one set for two seeds")
    for state in states[:: max(1, len(states) // 3)]:
        resumed, _ = generate(0, state)
        _require(torch.equal(made.images, resumed.images), generator, "gave another set when resumed from a checkpoint")
    if generator.images is not None:
        _require(len(made) == generator.images, generator, f"gave {len(made)} images of {generator.images}")
    return made


def check_quantizer(
    quantizer: Quantizer, scheme: str = "hw/w4a4", teacher: Pretrained | None = None, labels: bool = False
) -> nn.Module:
    """Check a quantizer; returns the quantized network.

    Checked: what is quantized depends on network and scheme alone; the same data gives the same network; the artifact,
    loaded into a freshly prepared network, gives the same outputs bit for bit; outputs are finite; teacher, hooks,
    gradient mode and global random state are left as they were.
    """
    _check_options(quantizer)
    teacher = teacher or tiny_teacher()
    parsed = parse_scheme(scheme)
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(32, *teacher.input_size, generator=noise)
    data = CalibrationSet(images, torch.arange(32) % (teacher.classes or 1) if labels else None)

    def quantize() -> nn.Module:
        def call(copied: Pretrained) -> nn.Module:
            student = quantizer.prepare(copied, parsed)
            quantizer.quantize(student, copied, None if quantizer.data_free else data, context())
            return student

        student: nn.Module = _untouched(teacher, call, quantizer)
        finalize(student)
        return student

    student, again = quantize(), quantize()
    states = student.state_dict(), again.state_dict()
    _require(states[0].keys() == states[1].keys(), quantizer, "has an artifact of changing structure")
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    _require(same, quantizer, "gave two different networks for one seed")
    loaded = quantizer.prepare(teacher, parsed)
    restore(loaded, states[0])
    with torch.no_grad():
        expected, found = student.eval()(images), loaded.eval()(images)
    _require(torch.equal(expected, found), quantizer, "has an artifact that gives other outputs when it is loaded")
    _require(bool(expected.isfinite().all()), quantizer, "gave a network with NaN or infinite outputs")
    return student


def check_task(task: Task, model: ModelSpec, data_root: Path | None = None) -> Evaluation:
    """Check a task on a model of its own; returns what it measured of the float network.

    Checked: evaluating twice gives the same; the shown metric is there and is a percentage; calibration images fit the
    network and are the same for one seed.
    """
    _check_options(task)
    ctx = context(data_root=data_root)
    files = task.find_data(data_root)
    _require(bool(files.evaluation), task, "found no evaluation data")
    pretrained = task.load(model, ctx)
    _require(not pretrained.module.training, task, "loaded a network that is not in eval mode")
    first, second = (task.evaluate(pretrained.module, pretrained, ctx) for _ in range(2))
    _require(first == second, task, "measured two different things on one network")
    _require(task.metric in first.metrics, task, f"has no metric {task.metric!r} in its evaluation")
    _require(0 <= first.metrics[task.metric] <= 100, task, "has a metric that is no percentage")  # noqa: PLR2004
    if files.calibration:
        sets = [task.calibration_images(4, 0, pretrained, ctx) for _ in range(2)]
        check_calibration_set(sets[0], pretrained, task.name)
        _require(torch.equal(sets[0].images, sets[1].images), task, "gave two calibration sets for one seed")
    return first


def _untouched(teacher: Pretrained, call: Callable[[Pretrained], Any], method: Method) -> Any:
    """Call a method with a copy of the teacher and check that it left the world as it was."""
    copied = Pretrained(**(vars(teacher) | {"module": copy.deepcopy(teacher.module)}))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    result = call(copied)
    _require(copied.digest() == teacher.digest(), method, "changed the teacher's weights or buffers")
    _require(not _hooks(copied.module), method, "left hooks on the teacher")
    _require(not any(module.training for module in copied.module.modules()), method, "left the teacher in train mode")
    trainable = any(parameter.requires_grad for parameter in copied.module.parameters())
    _require(not trainable, method, "left the teacher's weights with requires_grad")
    _require(torch.equal(state, torch.get_rng_state()), method, "used global randomness; take it from ctx")
    _require(torch.is_grad_enabled(), method, "left gradients off")
    _require(torch.get_num_threads() == threads, method, "changed the number of threads")
    return result


def _hooks(module: nn.Module) -> list[str]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [name for part in module.modules() for name in names if getattr(part, name)]


def _check_options(method: Method) -> None:
    """Options must survive the way to a worker."""
    rebuilt = type(method).model_validate_json(json.dumps(method.options()), strict=True)
    _require(rebuilt == method, method, "has options that do not survive JSON")


def _require(condition: bool, method: Method, complaint: str) -> None:
    if not condition:
        raise AssertionError(f"{method.kind} {method.name} {complaint}")


__all__ = ["MemoryReporter", "check_generator", "check_quantizer", "check_task", "context", "tiny_teacher"]
