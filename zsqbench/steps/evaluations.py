"""Evaluations in the store: metrics of a network in the manifest, and a file of samples.

The measuring steps share this code: baseline and evaluate write both, and oracle measures in the same way.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Evaluation, Pretrained
from zsqbench.scheme import FLOAT_BITS
from zsqbench.store import Artifact
from zsqbench.versions import EVALUATION_VERSION

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session
    from zsqbench.steps.planning import CellPlanning
    from zsqbench.steps.step import Job

SAMPLES = "samples.safetensors"
"""The file holds `correct` (bits, packed), `predictions` if the task gives them, `resampled.NAME` (the metric of this
name on resampled samples), and `task.NAME` (tensors of the task).

The file of the float network also holds `labels` and `difficulties`."""

ROUNDING = 2.0
"""A student that rounds its activations takes about so many times as long as the float network."""

CORRECT, PREDICTIONS, LABELS, DIFFICULTIES = "correct", "predictions", "labels", "difficulties"
RESAMPLED, OWN = "resampled.", "task."


def identity(cell: "CellPlanning") -> tuple[str, ...]:
    """Identity of a measurement besides the network: task, data, threads, and the version of its result."""
    return cell.task, cell.data.evaluation, str(cell.cell.settings.threads), EVALUATION_VERSION


def of_student(cell: "CellPlanning") -> float:
    """Work of evaluating a student: images that pass through the network, in passes of the float network."""
    rounds = cell.suite.schemes[cell.cell.scheme].activation_bits != FLOAT_BITS
    return cell.evaluated * (ROUNDING if rounds else 1.0)


def measure(
    session: "Session", job: "Job", reporter: "Reporter", module: "nn.Module", teacher: Pretrained
) -> Evaluation:
    """The evaluation of a network by the task. Raises ZSQBenchError if it does not fit what the task declares."""
    import torch

    from zsqbench.statistics import groups_of

    task = session.task(job)
    with torch.no_grad():
        evaluation = task.evaluate(module, teacher, session.task_context(job, reporter))
    if task.metric not in evaluation.metrics:
        measured = ", ".join(evaluation.metrics) or "nothing"
        raise ZSQBenchError(f"task {task.name} did not measure {task.metric!r}; it measured {measured}")
    for name, value in numbers(evaluation.metrics).items():
        if not math.isfinite(value):
            raise ZSQBenchError(
                f"task {task.name} measured {value} as {name}; expected a finite number, as a table shows it"
            )
    samples = len(evaluation.per_sample)
    for what in (PREDICTIONS, LABELS, DIFFICULTIES):
        count = len(getattr(evaluation, what))
        if count and samples and count != samples:
            raise ZSQBenchError(f"task {task.name} gave {count} {what} of {samples} samples")
    if not all(0 <= value <= 1 for value in evaluation.difficulties):
        raise ZSQBenchError(f"task {task.name} gave difficulties outside 0 to 1: each must be one minus a probability")
    for name, values in evaluation.resampled.items():
        expected = groups_of(samples or int(evaluation.metrics.get("samples", 0)))
        if name not in evaluation.metrics or len(values) != expected or not all(map(math.isfinite, values)):
            raise ZSQBenchError(
                f"task {task.name} gave {len(values)} values of {name!r} on resampled samples; expected {expected} "
                "finite ones of a metric that it measured"
            )
    return evaluation


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}


def content(evaluation: Evaluation, data: str) -> dict[str, Any]:
    """The content of the manifest: metrics, how many samples there were, and the digest of the data."""
    metrics = numbers(evaluation.metrics)
    return {
        "metrics": metrics,
        "samples": len(evaluation.per_sample) or int(metrics.get("samples", 0)),
        "data": data,
    }


def write_samples(folder: Path, evaluation: Evaluation, *, of_float: bool = False) -> None:
    """Write one file with the known values of each sample, if any. Only float has labels and difficulties."""
    import numpy as np
    from safetensors.numpy import save_file

    if tensors := samples_of(evaluation if of_float else replace(evaluation, labels=(), difficulties=())):
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / SAMPLES)


def samples_of(evaluation: Evaluation) -> "dict[str, np.ndarray]":
    """The known values of each sample, as `read_samples` gives them. Empty: nothing is known."""
    import numpy as np

    tensors = {f"{OWN}{name}": tensor.detach().cpu().numpy() for name, tensor in evaluation.tensors.items()}
    if len(evaluation.per_sample):
        tensors[CORRECT] = np.packbits(np.asarray(evaluation.per_sample, dtype=bool))
    for name, values in evaluation.resampled.items():
        tensors[f"{RESAMPLED}{name}"] = np.asarray(values, dtype="<f4")
    for name, values in ((PREDICTIONS, evaluation.predictions), (LABELS, evaluation.labels)):
        if len(values):
            tensors[name] = _small(np.asarray(values, dtype=np.int32))
    if len(evaluation.difficulties):
        tensors[DIFFICULTIES] = np.asarray(evaluation.difficulties, dtype=np.float16)
    return tensors


def read_samples(artifact: Artifact) -> "dict[str, np.ndarray]":
    """Read the file of `write_samples`. Empty: there is no file."""
    path = artifact.folder / SAMPLES
    try:
        status = path.stat()
    except FileNotFoundError:
        return {}
    return dict(_load_samples(path, status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=2)
def _load_samples(path: Path, _inode: int, _time: int) -> "Mapping[str, np.ndarray]":
    """The tensors of a file, kept in memory while the file is unchanged. All cells of a network read its float file."""
    from safetensors.numpy import load_file

    return load_file(path)


def packed(samples: "Mapping[str, np.ndarray]") -> str | None:
    """Which samples were right, in the form of a row: packed bits in base64, the first sample in the highest bit."""
    return base64.b64encode(samples[CORRECT].tobytes()).decode() if CORRECT in samples else None


def resampled(samples: "Mapping[str, np.ndarray]") -> dict[str, str]:
    """Metrics on resampled samples, in the form of a row: float32, little-endian, in base64."""
    return {
        name.removeprefix(RESAMPLED): base64.b64encode(values.astype("<f4").tobytes()).decode()
        for name, values in samples.items()
        if name.startswith(RESAMPLED)
    }


def discordant(first: "Mapping[str, np.ndarray]", second: "Mapping[str, np.ndarray]") -> tuple[int, int] | None:
    """How many samples only the first network has right, and how many only the second. None: not known."""
    import numpy as np

    if CORRECT not in first or CORRECT not in second or first[CORRECT].shape != second[CORRECT].shape:
        return None
    one, other = (np.unpackbits(samples[CORRECT]).astype(bool) for samples in (first, second))
    return int((one & ~other).sum()), int((other & ~one).sum())


def agreement(first: "Mapping[str, np.ndarray]", second: "Mapping[str, np.ndarray]") -> dict[str, float]:
    """Percent of the samples with equal predictions of both networks. None: predictions are not known."""
    if PREDICTIONS not in first or PREDICTIONS not in second:
        return {}
    one, other = first[PREDICTIONS], second[PREDICTIONS]
    if one.shape != other.shape:
        return {}
    return {"agreement": 100 * float(((one == other) & (one >= 0)).mean())}


def _small(values: "np.ndarray") -> "np.ndarray":
    """Integers, in two bytes each if they fit."""
    import numpy as np

    smaller = values.astype(np.int16)
    return smaller if (smaller == values).all() else values
