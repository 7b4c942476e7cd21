"""Seconds of finished steps and their work. The time of the next run is estimated from them."""

import contextlib
import json
import logging
import statistics
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from zsqbench.steps.step import Amount, Step, Work
from zsqbench.store import Store

_LINE: TypeAdapter[tuple[str, Amount] | tuple[str, Amount, Work]] = TypeAdapter(
    tuple[str, Amount] | tuple[str, Amount, Work]
)
"""The fields of a line of the file. Older versions wrote only the first two."""

NO_STEP = ""
"""The timing key of shortened steps, which are not steps of a run and only give rates."""


@dataclass(frozen=True)
class Timing:
    """How long a step took."""

    key: str
    """Its timing key."""
    seconds: float
    work: Work | None = None
    """None: not known, or the line is of an older version."""

    @property
    def probed(self) -> bool:
        """True for a shortened step that ran only for its rate."""
        return self.key == NO_STEP

    def line(self) -> str:
        """The line of the file."""
        # asdict would make a deep copy of each value
        work = [] if self.work is None else [{each.name: getattr(self.work, each.name) for each in fields(self.work)}]
        return json.dumps([self.key, round(self.seconds, 4), *work])


@dataclass(frozen=True)
class Timings:
    """Seconds of finished steps. The time of the next run is estimated from them."""

    store: Store

    @property
    def _path(self) -> Path:
        return self.store.home / "timings.jsonl"

    def add(self, step: Step, seconds: float) -> None:
        """Remember how long a step took."""
        self._append(Timing(step.timing_key, seconds, step.work))

    def add_probe(self, work: Work, seconds: float) -> None:
        """Remember the seconds of a shortened step with this work."""
        self._append(Timing(NO_STEP, seconds, work))

    def _append(self, timing: Timing) -> None:
        with (
            contextlib.suppress(OSError),
            self._path.open("a", encoding="utf-8") as file,
        ):  # only estimates need the file
            file.write(timing.line() + "\n")

    @cached_property
    def all(self) -> list[Timing]:
        """All remembered times. Invalid lines are ignored, with one warning."""
        found: list[Timing] = []
        ignored = 0
        for line in self._lines():
            try:
                found.append(_parse(line))
            except ValidationError:
                ignored += 1
        if ignored:
            logging.getLogger("zsqbench").warning(
                "estimates ignore %d invalid line%s of %s; delete the lines, or the file",
                ignored,
                "" if ignored == 1 else "s",
                self._path,
            )
        return found

    @cached_property
    def _seconds(self) -> dict[str, list[float]]:
        """Seconds of steps of runs, by timing key."""
        seconds: dict[str, list[float]] = {}
        for timing in self.all:
            if not timing.probed:
                seconds.setdefault(timing.key, []).append(timing.seconds)
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
        """Median seconds of the steps that differ only in seed or scheme. None: there are none."""
        return statistics.median(self._seconds[step.timing_key]) if step.timing_key in self._seconds else None


def _parse(line: bytes) -> Timing:
    """The time in a line. Raises ValidationError for an invalid line."""
    key, seconds, *work = _LINE.validate_json(line, strict=True)
    return Timing(key, seconds, *work)
