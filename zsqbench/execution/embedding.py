"""Features of a network for the images of calibration sets, and for real images beside them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.execution.reporter import Reporter
from zsqbench.execution.session import Session
from zsqbench.methods.asking import asking
from zsqbench.steps.companion import REAL_SEED
from zsqbench.steps.generate import Generate
from zsqbench.store import Artifact

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Features:
    """Penultimate features of sets of images, each [N, F]."""

    sets: "Mapping[str, np.ndarray]"
    real: "np.ndarray | None"
    """Features of images that the task offers for calibration, never of evaluation images."""
    why_no_real: str = ""


def find_features(session: Session, sets: Mapping[str, Artifact], images: int) -> Features:
    """The features of the first images of each set of one network, and of as many real images, if there are any.

    Raises ZSQBenchError if the network has no such features. Raises CorruptArtifactError for a damaged set.
    """
    import torch

    from zsqbench.synthesis import penultimate_features

    def features(of: "torch.Tensor") -> "np.ndarray":
        return penultimate_features(network, of[:images]).numpy()

    found: dict[str, np.ndarray] = {}
    for name, artifact in sets.items():
        with artifact.reading():
            job = Generate.model_validate(artifact.field("job", dict))
        network = session.teacher(job)
        found[name] = features(Generate.load(artifact).images)
    task = session.task(job)
    with asking(task, "find_data"):
        data = task.find_data(session.config.data_root)
    if not data.calibration:
        return Features(found, None, data.absent or f"task {task.name} has no images that it does not evaluate")
    with tempfile.TemporaryDirectory() as folder:
        reporter = Reporter(Path(folder), torch.Generator(session.device).manual_seed(REAL_SEED))
        context = session.task_context(job, reporter)
        real = task.calibration_images(images, REAL_SEED, network, context).images
    return Features(found, features(real))
