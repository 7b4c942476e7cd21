"""The delivery of what a search chose: the model in a file, checked and timed in the runtime, and the page about it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zsqbench import api
from zsqbench.autoquantize.page import Page, Section
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.runtime import Runtime, measure
from zsqbench.autoquantize.search import Found, Tried
from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from zsqbench.methods import Pretrained
    from zsqbench.reports.doctor import Checkup

CLIPPED = 0.01
"""The share of outputs beyond the student's range from which on the page warns."""

FEW_EQUAL = 99.0
"""Percent of equal decisions of runtime and simulation below which the page warns."""


@dataclass(frozen=True)
class Delivery:
    """A model in a file."""

    path: Path
    tried: Tried
    size_mb: float
    notes: Sequence[str]
    runtime: Runtime
    clipped: float
    """The share of the float network's outputs, on the held-out images, beyond all that the student gave there."""


def check_output(path: Path) -> None:
    """Raise ZSQBenchError where a model, or a page beside it, could not be written or would replace another file."""
    if path.suffix != ".onnx":
        raise ZSQBenchError(f"the model is written as ONNX: expected -o NAME.onnx, got {path}")
    for file in (path, path.with_suffix(".py"), *pages_of(path)):
        if file.exists():
            raise ZSQBenchError(f"{file} is there already, and is left as it is; remove it, or name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.try").touch()
        (path.parent / f".{path.name}.try").unlink()
    except OSError as error:
        raise ZSQBenchError(f"cannot write into {path.parent}: {error.strerror}") from error


def check_extra() -> None:
    """Raise ZSQBenchError where packages are not installed that an export needs, before hours are spent."""
    from zsqbench.export import missing

    if lack := missing():
        raise ZSQBenchError(f"an export is not possible: {lack}")


def pages_of(path: Path) -> tuple[Path, Path]:
    """Where the page stands as text and as HTML."""
    return path.with_suffix(".txt"), path.with_suffix(".html")


def deliver(request: Request, found: Found, network: "Pretrained", tried: Tried, path: Path) -> Delivery:
    """Write the student of a candidate, compare the runtime with it on held-out images, and time it."""
    import torch

    from zsqbench.export.exporting import Description, export_student
    from zsqbench.export.script import write_script
    from zsqbench.methods import CalibrationSet

    student, _ = api.load_student(found.suite, tried.row.cell, home=request.home, results=found.results)
    network.module.cpu()
    metadata = {
        "model": request.model,
        "scheme": request.scheme,
        "pipeline": tried.candidate.name,
        str(tried.row.metric): f"{tried.row.value:.2f}",
    }
    graph = cast("fx.GraphModule", student)
    made = export_student(graph, Description(network, origin=metadata), path)
    write_script(path, network.preprocessing)
    images = CalibrationSet.load(found.held_out).images
    with torch.no_grad():
        clipped = _clipped(student, network.module, images)
    runtime = measure(path, graph, network, images)
    return Delivery(path, tried, made.size_mb, list(made.notes), runtime, clipped)


def _clipped(student: "nn.Module", network: "nn.Module", images: "torch.Tensor") -> float:
    """The share of a network's outputs beyond the smallest and the largest that its student gives on these images."""
    import torch

    from zsqbench.autoquantize.runtime import first

    pairs = [(first(network(batch)), first(student(batch))) for batch in torch.split(images, 32)]
    expected, given = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    step = (given.max() - given.min()) / 255  # what rounding alone moves the ends by is not clipped
    return float(((expected > given.max() + step) | (expected < given.min() - step)).double().mean())


def deliver_all(
    request: Request, found: Found, network: "Pretrained", path: Path, left: Callable[[], float]
) -> list[Delivery]:
    """The chosen candidate's delivery, and that of the second, to be timed beside it, where time for it is left.

    `left` gives the seconds that are. Of the second, no file stays.
    """
    before = left()
    delivered = [deliver(request, found, network, found.ranking[0], path)]
    if len(found.ranking) > 1 and left() > 1.5 * (before - left()):
        with tempfile.TemporaryDirectory() as folder:
            delivered.append(deliver(request, found, network, found.ranking[1], Path(folder) / "second.onnx"))
    return delivered


def make_page(request: Request, found: Found, checkup: "Checkup", delivered: Sequence[Delivery]) -> Page:
    """The page about a search and the models that were delivered, the chosen one first."""
    chosen = delivered[0]
    return Page(
        f"{request.model} at {request.target} ({request.scheme})",
        [
            Section("What was chosen, and why", _choice(request, found, chosen)),
            Section("What it costs", _costs(found, chosen), _latencies(delivered)),
            Section("What to fear", _fears(request, found, checkup, chosen)),
            Section("Candidates", table=_table(found, chosen.tried)),
            Section("Left out", [f"{name}: {why}" for name, why in found.left_out.items()] or ["none"]),
        ],
    )


def _choice(request: Request, found: Found, chosen: Delivery) -> list[str]:
    first, *others = found.ranking
    row = chosen.tried.row
    lines = [
        f"{first.candidate.name} is in {chosen.path}.",
        f"It has the highest {row.metric} of {len(found.ranking)} candidates: {_judged(row.value, row.metric)}.",
    ]
    if others:
        lines.append(f"The second is {others[0].candidate.name}, with {_judged(others[0].row.value, row.metric)}.")
    if found.control is not None:
        lines.append(
            f"The control, {found.control.candidate.name}, has {_judged(found.control.row.value, row.metric)}."
        )
    judged = f"{found.level.images} images that {found.generator} made with another seed than those calibrated on"
    if request.images is not None:
        judged = f"the images of {request.images}; besides, on {judged}"
    return [*lines, f"Judged on {judged}."]


def _judged(value: float | None, metric: str | None) -> str:
    what = "% equal decisions with the float network" if metric == "agreement" else "% fidelity of the outputs"
    return f"{value or 0.0:.2f} {what}"


def _costs(found: Found, chosen: Delivery) -> list[str]:
    row, runtime = chosen.tried.row, chosen.runtime
    lines = [f"Decisions or outputs: {_judged(row.value, row.metric)}."]
    if "top1" in row.metrics:
        lines.append(
            f"Accuracy on the labelled images: {row.metrics['top1']:.2f} %, float {row.float_metrics['top1']:.2f} %."
        )
    lines += [
        f"Size: {chosen.size_mb:.2f} MB, float {runtime.float_size_mb:.2f} MB.",
        *(f"ONNX Runtime: {line}." for line in runtime.check.lines()),
        f"Timed on {runtime.processor}.",
        f"The search took {found.seconds:.0f} s.",
    ]
    return lines


def _latencies(delivered: Sequence[Delivery]) -> list[list[str]]:
    head = ["onnxruntime, batch 1, one thread", "p50 ms", "p95 ms"]
    timed = {"float": delivered[0].runtime.unquantized}
    timed |= {delivery.tried.candidate.name: delivery.runtime.quantized for delivery in delivered}
    return [head, *([name, f"{latency.p50:.2f}", f"{latency.p95:.2f}"] for name, latency in timed.items())]


def _fears(request: Request, found: Found, checkup: "Checkup", chosen: Delivery) -> list[str]:
    runtime, row = chosen.runtime, chosen.tried.row
    lines = [f"doctor: {line}" for line in (*checkup.warnings, *checkup.notes)] + list(row.notes)
    if checkup.random_weights:
        lines.append("The network has random weights: nothing here says anything of a trained one.")
    if request.images is None:
        lines.append("Agreement was measured on synthetic images only; give some of yours by --images.")
    if found.generator != "dgh":
        lines.append("The images judged on are noise, which no network was made for; take the figures as hints.")
    elif chosen.tried.candidate.generator == found.generator and request.images is None:
        lines.append("It was calibrated on images of the generator that made those it is judged on.")
    control = found.control
    if control is not None and control.rank >= chosen.tried.rank:
        lines.append(f"The control, {control.candidate.name}, is as good: the images made no difference that is seen.")
    if chosen.clipped > CLIPPED:
        lines.append(
            f"{100 * chosen.clipped:.1f} % of the float outputs lie beyond the range of the quantized outputs, and are "
            "clipped; a scheme with logits: float keeps them."
        )
    if row.metric == "agreement" and runtime.equal < FEW_EQUAL:
        lines.append(f"onnxruntime decides otherwise than the simulation on {100 - runtime.equal:.1f} % of the images.")
    if runtime.quantized.p50 >= runtime.unquantized.p50:
        lines.append(
            f"On this CPU the quantized model is slower than float: {runtime.quantized.p50:.2f} and "
            f"{runtime.unquantized.p50:.2f} ms."
        )
    return [*lines, *chosen.notes] or ["Nothing that was found."]


def _table(found: Found, chosen: Tried) -> list[list[str]]:
    labelled = any("top1" in tried.row.metrics for tried in found.tried)
    metric = str(chosen.row.metric)
    head = ["candidate", metric, *(["fidelity"] if metric != "fidelity" else []), *(["top1"] if labelled else [])]
    rows = []
    for tried in sorted(found.tried, key=lambda tried: (tried.is_done, tried.rank), reverse=True):
        name = f"{tried.candidate.name}{' (control)' if tried.candidate.control else ''}"
        figures = [_figure(tried, each) for each in head[1:]]
        end = "chosen" if tried is chosen else "" if tried.is_done else f"{tried.row.status}: {tried.row.reason}"
        rows.append([name, *figures, f"{tried.seconds:.1f}", end])
    return [[*head, "seconds", ""], *rows]


def _figure(tried: Tried, metric: str) -> str:
    return f"{tried.row.metrics[metric]:.2f}" if tried.is_done and metric in tried.row.metrics else "-"
