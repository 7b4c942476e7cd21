"""Time two files on this processor, beside each other in one run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zsqbench.export.runtime import CPU, open_session, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

WARM_UP = 3
"""Number of runs before timing."""

LEAST_RUNS, MOST_RUNS, SECONDS = 10, 200, 4.0
"""Bounds of the timed runs of each file at each batch size, and the seconds for them."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of a run: the median, and the 95th percentile."""

    p50: float
    p95: float


def latency(
    files: Mapping[str, Path], size: tuple[int, int, int], batch_sizes: Sequence[int], providers: Sequence[str] = (CPU,)
) -> dict[int, dict[str, Times]]:
    """Time files in turns, on one thread, so that other work of the machine affects all files alike.

    `size` is channels, height, width. Returns times by batch size and by the file's name in `files`.
    """
    sessions = {name: open_session(path, providers) for name, path in files.items()}
    return {batch: _timed(sessions, size, batch) for batch in batch_sizes}


def _timed(sessions: Mapping[str, "InferenceSession"], size: tuple[int, int, int], batch: int) -> dict[str, Times]:
    noise = np.random.default_rng(0).random((batch, *size), np.float32)
    given = {
        name: (255 * noise).astype(np.uint8) if session.get_inputs()[0].type == "tensor(uint8)" else noise
        for name, session in sessions.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    started = time.perf_counter()
    turn = 0
    while turn < WARM_UP + LEAST_RUNS or (turn < MOST_RUNS and time.perf_counter() - started < SECONDS * len(sessions)):
        for name, session in sessions.items():
            before = time.perf_counter()
            run(session, given[name])
            if turn >= WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - before))
        turn += 1
    return {name: Times(*map(float, np.percentile(times, (50, 95)))) for name, times in taken.items()}
