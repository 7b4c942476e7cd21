"""Seconds that steps took, from which the time of the next run is estimated."""

import contextlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zsqbench.steps.step import Step
from zsqbench.store import Store


@dataclass(frozen=True)
class Timings:
    """Seconds of finished steps, by timing key, from which the next run's time is estimated."""

    store: Store

    @property
    def _path(self) -> Path:
        return self.store.home / "timings.jsonl"

    def add(self, step: Step, seconds: float) -> None:
        """Remember how long a step took."""
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # only estimates need it
            file.write(json.dumps([step.timing_key, round(seconds, 4)]) + "\n")

    @cached_property
    def _seconds(self) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {}
        for timing_key, value in self._lines():
            seconds.setdefault(timing_key, []).append(value)
        return seconds

    def _lines(self) -> Iterator[tuple[str, float]]:
        if not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                timing_key, value = json.loads(line)
                yield timing_key, float(value)
            except (ValueError, TypeError):
                continue  # cut off by a crash

    def estimate(self, step: Step) -> float | None:
        """Median seconds of the steps that differed in seed or scheme only, or none."""
        return statistics.median(self._seconds[step.timing_key]) if step.timing_key in self._seconds else None
