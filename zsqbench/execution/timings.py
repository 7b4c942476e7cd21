"""Seconds that steps took, from which the time of the next run is estimated."""

import contextlib
import json
import logging
import math
import statistics
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
        """Seconds by timing key. Lines that are no times of steps are ignored, with one warning."""
        seconds: dict[str, list[float]] = {}
        ignored = 0
        for line in self._lines():
            try:
                timing_key, value = _parse(line)
            except (ValueError, OverflowError, RecursionError):
                ignored += 1
                continue
            seconds.setdefault(timing_key, []).append(value)
        if ignored:
            logging.getLogger("zsqbench").warning(
                "estimates ignore %d line%s of %s that hold no time of a step; delete them, or the file",
                ignored,
                "" if ignored == 1 else "s",
                self._path,
            )
        return seconds

    def _lines(self) -> list[bytes]:
        try:
            return self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            logging.getLogger("zsqbench").warning(
                "nothing is estimated: cannot read %s: %s", self._path, error.strerror
            )
            return []

    def estimate(self, step: Step) -> float | None:
        """Median seconds of the steps that differed in seed or scheme only, or none."""
        return statistics.median(self._seconds[step.timing_key]) if step.timing_key in self._seconds else None


def _parse(line: bytes) -> tuple[str, float]:
    """A timing key and seconds. Raises ValueError, OverflowError or RecursionError for a line that is none of these."""
    entry = json.loads(line.decode())
    if not isinstance(entry, list) or [type(part) for part in entry] not in ([str, float], [str, int]):
        raise ValueError("expected a timing key and seconds")
    seconds = float(entry[1])
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("expected seconds")
    return entry[0], seconds
