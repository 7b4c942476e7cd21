"""The errors that are the user's to mend; anything else that is raised is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ZSQBenchError(Exception):
    """A mistake of the user's: shown as one line, without a traceback, with exit code 2."""

    exit_code = 2


class PluginUnavailableError(ZSQBenchError):
    """A suite names a method that no loaded plugin provides, and some plugin failed to load."""

    exit_code = 4


class MethodFaultError(ZSQBenchError):
    """A method of a plugin failed at what it is asked while a suite is planned: a fault of the plugin's."""

    exit_code = 4


class NothingSelectedError(ZSQBenchError):
    """A filter or an exclusion left no cell to run."""

    exit_code = 5


class OutdatedError(ZSQBenchError):
    """A file is not what it was when the run began; another run takes it as it is."""


class OutOfResourcesError(ZSQBenchError):
    """Memory or a disk is full: a step's checkpoint stays, to go on from when there is more, or with less."""


class OutOfMemoryError(OutOfResourcesError):
    """A step ran out of memory."""


def is_memory_shortage(error: BaseException | None) -> bool:
    """True for an error that says that memory was full, or that was raised because of one.

    torch.OutOfMemoryError is a RuntimeError with these words; of host and pinned memory torch says it in words only.
    """
    if error is None:
        return False
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_IS_FULL)
    return said or isinstance(error, MemoryError) or is_memory_shortage(error.__cause__)


_MEMORY_IS_FULL = ("can't allocate memory", "out of memory")


class DivergedError(ZSQBenchError):
    """Training has left the finite numbers. `state` is the last that was good, by name; it is kept to be looked at."""

    def __init__(self, message: str, state: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.state = dict(state or {})


class CorruptArtifactError(ZSQBenchError):
    """An artifact in the store is not what was written; `key` says which, so that it can be made again."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(key, detail)  # both in args, so that the error survives the way back from a worker
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return in_one_line(f"artifact {self.key[:12]} is damaged ({self.detail}); it is made again when it is needed")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'zeroq'?` for the closest of the known names, or nothing where none is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


MOST_NAMES = 40
"""A message lists so many names; of more, it lists the first dozen and counts the others."""


def unknown(what: str, given: str, known: Iterable[str], where: str = "") -> str:
    """One line that says what was given, where, what is meant perhaps, and what there is."""
    names = sorted(known)
    place = f" in {where}" if where else ""
    suggestion = did_you_mean(given, names) or ";"
    listed, rest = (names, 0) if len(names) <= MOST_NAMES else (names[:12], len(names) - 12)
    more = f" and {rest} more" if rest else ""
    return f"unknown {what} {given!r}{place}{suggestion} known: {', '.join(listed) or 'none'}{more}"


def in_one_line(text: str) -> str:
    """A text, which may be from a file or its name, as one line that can be printed."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def one_line(error: BaseException) -> str:
    """An error in one line: what a user's mistake says, or the type and text of any other."""
    try:
        text = in_one_line(str(error))
    except Exception:  # noqa: BLE001 - an error of a stranger's, which cannot even say what it is
        text = ""
    if isinstance(error, ZSQBenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
