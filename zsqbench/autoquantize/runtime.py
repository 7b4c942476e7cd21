"""A written model in onnxruntime: does it decide as the simulation does, and how long does it take beside float."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

ROUNDS, SECONDS = 50, 10.0
"""How often each model is timed, and in how many seconds at most."""

CHECKED = 64
"""How many images are compared at most."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a batch of one image, on one thread of this CPU."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Runtime:
    """What onnxruntime made of a model."""

    equal: float
    """Percent of images of which the largest output is the simulation's."""
    error: float
    """Relative error of the outputs against the simulation's, in percent."""
    images: int
    quantized: Latency
    unquantized: Latency
    float_size_mb: float


def measure(path: Path, student: "nn.Module", network: "nn.Module", images: "torch.Tensor") -> Runtime:
    """Compare a written model with its student, and time it beside the float network, round by round."""
    import numpy as np
    import torch

    checked = images[:CHECKED]
    with tempfile.TemporaryDirectory() as folder:
        float_path = Path(folder) / "float.onnx"
        _write_float(network, checked, float_path)
        sessions = [_session(file) for file in (path, float_path)]
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    with torch.no_grad():
        expected = torch.cat([first(student(image[None])) for image in checked]).numpy()
    made = np.concatenate([_run(sessions[0], image) for image in checked[:, None].numpy()])
    flat, wanted = (array.reshape(len(checked), -1) for array in (made, expected))
    quantized, floating = _timed(sessions, checked[:1].numpy())
    return Runtime(
        equal=100 * float((flat.argmax(1) == wanted.argmax(1)).mean()),
        error=100 * float(np.linalg.norm(flat - wanted) / max(float(np.linalg.norm(wanted)), 1e-12)),
        images=len(checked),
        quantized=quantized,
        unquantized=floating,
        float_size_mb=size,
    )


def _write_float(network: "nn.Module", images: "torch.Tensor", path: Path) -> None:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images[:1],), str(path), dynamo=True, verbose=False)


def _session(path: Path) -> Any:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, image: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The first output of a batch."""
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: image})[0]
    return found


def first(output: Any) -> "torch.Tensor":
    """The first tensor of what a network returns."""
    import torch

    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def _timed(sessions: Sequence[Any], image: "np.ndarray[Any, Any]") -> list[Latency]:
    """Both in turn, so that what else the machine does falls on both."""
    import numpy as np

    for session in sessions:
        _run(session, image)
    took: list[list[float]] = [[] for _ in sessions]
    began = time.perf_counter()
    while len(took[0]) < ROUNDS and time.perf_counter() - began < SECONDS:
        for session, times in zip(sessions, took, strict=True):
            start = time.perf_counter()
            _run(session, image)
            times.append(1000 * (time.perf_counter() - start))
    return [Latency(*(float(np.percentile(times, at)) for at in (50, 95))) for times in took]
