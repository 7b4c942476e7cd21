"""The loss terms of fine-tuning around quantized networks, on the calibration images of each."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.session import Session
from zsqbench.steps.generate import Generate
from zsqbench.steps.quantize import Quantize
from zsqbench.store import Artifact

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.quant.landscape import Landscape

NEEDED = "curvlinops"
INSTALL = "pip install 'zsqbench[landscape]'"


@dataclass(frozen=True)
class QuantizedCell:
    """The artifacts of a cell."""

    network: Artifact
    calibration: Artifact


@dataclass(frozen=True)
class Surroundings:
    """The landscape around the quantized network of a cell."""

    landscape: "Landscape"
    has_labels: bool
    """True: cross-entropy uses the labels of the set. False: it uses the decisions of the float network."""


def check_installed() -> None:
    """Raise ZSQBenchError if the package for spectra is not installed."""
    if importlib.util.find_spec(NEEDED) is None:
        raise ZSQBenchError(f"{NEEDED} is not installed: {INSTALL}")


def find_landscapes(session: Session, cells: Mapping[str, QuantizedCell], images: int) -> dict[str, Surroundings]:
    """Measure the landscape around each cell's quantized network, on the first images of its calibration set.

    Raises ZSQBenchError for a cell without a quantized weight (before any measurement, if the scheme says so), for a
    network that does not classify, and as `measure_landscape` does. Raises CorruptArtifactError for a damaged artifact.
    """
    jobs = {name: _job(name, cell) for name, cell in cells.items()}
    return {name: _around(session, name, jobs[name], cell, images) for name, cell in cells.items()}


def _job(name: str, cell: QuantizedCell) -> Quantize:
    with cell.network.reading():
        job = Quantize.model_validate(cell.network.field("job", dict))
    if not job.scheme.quantizes_weights:
        raise ZSQBenchError(f"no weight of {name} is quantized: its scheme is {job.scheme.name}; select others with -k")
    return job


def _around(session: Session, name: str, job: Quantize, cell: QuantizedCell, images: int) -> Surroundings:
    from zsqbench.quant import follow_rescaling, quantized_layers
    from zsqbench.quant.landscape import measure_landscape

    student = job.restored(session, job.prepared(session), cell.network)
    if not quantized_layers(student):
        raise ZSQBenchError(
            f"no weight of {name} is quantized, or its quantizer left no map of it; select others with -k"
        )
    reference = job.prepared(session).to(session.device).eval()
    follow_rescaling(reference, student)
    found = Generate.load(cell.calibration)
    pixels = found.images[:images].to(session.device)
    labels = None if found.labels is None else found.labels[:images].to(session.device)
    _check_classifier(name, reference, pixels[:1])
    try:
        landscape = measure_landscape(cast("fx.GraphModule", student), reference, pixels, labels)
    except ZSQBenchError as error:
        raise ZSQBenchError(f"cell {name}: {error}") from error
    return Surroundings(landscape, labels is not None)


def _check_classifier(name: str, network: "fx.GraphModule", image: "torch.Tensor") -> None:
    import torch

    from zsqbench.synthesis import class_logits

    try:
        with torch.no_grad():
            class_logits(network(image), image)
    except ZSQBenchError as error:
        raise ZSQBenchError(
            f"the loss terms need a classifier, and the network of {name} is not one: {error}"
        ) from error
