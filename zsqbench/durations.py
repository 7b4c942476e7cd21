"""Durations as people write them: 90s, 20m, 1h30m, or a number of seconds."""

import re

from zsqbench.errors import ZSQBenchError

_PART = re.compile(r"(\d+(?:\.\d+)?)([hms])")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str, what: str = "duration") -> float:
    """Seconds of `90s`, `20m`, `1.5h`, `1h30m`, or of a plain number of seconds.

    `what` is the name of the duration in an error message. Raises ZSQBenchError for other texts, and for zero.
    """
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if parts and "".join(map("".join, parts)) == text and units == sorted(set(units), key="hms".index):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        seconds = float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else 0.0
    if not 0 < seconds < float("inf"):
        raise ZSQBenchError(f"{what} {text!r} is not a duration; expected 90s, 20m, 1h30m, or a number of seconds")
    return seconds


def in_words(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 2 h 05 min."""
    if seconds < 99.5:  # noqa: PLR2004 - as `time` reads best
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"  # noqa: PLR2004 - likewise
