"""Deliver the chosen candidate: write the model to a file, then check and time it in the runtime."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zsqbench import api
from zsqbench.autoquantize.candidates import CHECKED
from zsqbench.autoquantize.findings import Found, Tried
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.runtime import Runtime, measure
from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import fx

    from zsqbench.methods import Pretrained


@dataclass(frozen=True)
class Delivery:
    """A model in a file."""

    path: Path
    tried: Tried
    size_mb: float
    notes: Sequence[str]
    runtime: Runtime


def check_output(path: Path) -> None:
    """Raise ZSQBenchError if a model or its page could not be written, or would replace another file."""
    if path.suffix != ".onnx":
        raise ZSQBenchError(f"the model is written as ONNX: expected -o NAME.onnx, got {path}")
    for file in files_of(path):
        if file.exists():
            raise ZSQBenchError(f"{file} is there already, and is left as it is; remove it, or name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.try").touch()
        (path.parent / f".{path.name}.try").unlink()
    except OSError as error:
        raise ZSQBenchError(f"cannot write into {path.parent}: {error.strerror}") from error


def check_extra() -> None:
    """Raise ZSQBenchError if packages for the export are not installed, before hours are spent."""
    from zsqbench.export import missing

    if lack := missing():
        raise ZSQBenchError(f"an export is not possible: {lack}")


def files_of(path: Path) -> tuple[Path, ...]:
    """The model, the script that runs it, and the page."""
    return (path, path.with_suffix(".py"), *pages_of(path))


def pages_of(path: Path) -> tuple[Path, Path]:
    """The paths of the page as text and as HTML."""
    return path.with_suffix(".txt"), path.with_suffix(".html")


@contextlib.contextmanager
def all_or_none(path: Path) -> Iterator[None]:
    """If the block fails, remove the written files of the model and its page, so that the command can be repeated."""
    try:
        yield
    except BaseException:
        for file in files_of(path):
            file.unlink(missing_ok=True)
        raise


def deliver(request: Request, found: Found, network: "Pretrained", path: Path) -> Delivery:
    """Write the student of the first candidate, compare the runtime with it on held-out images, and time it."""
    from zsqbench.export.options import ExportOptions
    from zsqbench.methods import CalibrationSet
    from zsqbench.steps.export import write_student

    tried = found.ranking[0]
    student, preprocess = api.load_student(found.suite, tried.row.cell, home=request.home, results=found.results)
    network.module.cpu()
    metadata = {
        "model": request.model,
        "scheme": request.scheme,
        "pipeline": tried.candidate.name,
        str(tried.row.metric): f"{tried.row.value:.2f}",
    }
    graph = cast("fx.GraphModule", student)
    options = ExportOptions(weights=request.target)
    made = write_student(graph, network, path, options, (), metadata)
    if request.images is None:
        images = CalibrationSet.load(found.held_out).images[:CHECKED]
    else:
        images = _images_of(request.images, preprocess)
    runtime = measure(path, graph, network, images)
    return Delivery(path, tried, made.size_mb, list(made.notes), runtime)


def _images_of(folder: Path, preprocess: "Callable[[Image], torch.Tensor]") -> "torch.Tensor":
    """Some of the user's images for judging, preprocessed for the network."""
    import torch

    from zsqbench.zoo.imagefiles import open_image
    from zsqbench.zoo.images import draw, list_images

    files = {file.name: file.path for file in list_images(folder)}
    return torch.cat([preprocess(open_image(files[name])) for name in draw(list(files), CHECKED, 0)])
