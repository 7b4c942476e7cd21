"""Errors that the user can correct. Any other exception is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ZSQBenchError(Exception):
    """A mistake of the user. It is shown as one line without a traceback, and the exit code is 2."""

    exit_code = 2


class PluginUnavailableError(ZSQBenchError):
    """A suite names a method that no loaded plugin provides, and some plugin failed to load."""

    exit_code = 4


class MethodFaultError(ZSQBenchError):
    """A method of a plugin failed while a suite was planned. This is a fault of the plugin."""

    exit_code = 4


class NothingSelectedError(ZSQBenchError):
    """A filter or an exclusion left no cell to run."""

    exit_code = 5


class OutdatedError(ZSQBenchError):
    """A file has changed since the run began. Another run accepts the new content."""


class OutOfResourcesError(ZSQBenchError):
    """Memory or a disk is full. The checkpoint of a step stays, so that the step can continue later."""


class OutOfMemoryError(OutOfResourcesError):
    """A step ran out of memory."""


def is_memory_shortage(error: BaseException | None) -> bool:
    """True for an error that says that memory was full, or that was raised because of one.

    torch.OutOfMemoryError is a RuntimeError with these words. For host and pinned memory torch has only the words.
    """
    if error is None:
        return False
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_IS_FULL)
    return said or isinstance(error, MemoryError) or is_memory_shortage(error.__cause__)


_MEMORY_IS_FULL = ("can't allocate memory", "out of memory")


class DivergedError(ZSQBenchError):
    """Training has left the finite numbers. `state` is the last good state, by name. It is kept for inspection."""

    def __init__(self, message: str, state: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.state = dict(state or {})


class CorruptArtifactError(ZSQBenchError):
    """The content of an artifact in the store has changed. `key` names the artifact, so that it can be made again."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(key, detail)  # both are in args, so that a worker can send the error to its parent
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return in_one_line(f"artifact {self.key[:12]} is damaged ({self.detail}); it is made again when it is needed")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'zeroq'?` with the closest known name. Empty: no name is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


MOST_NAMES = 40
"""A message lists at most so many names. Of more names, it lists the first dozen and counts the others."""


def unknown(what: str, given: str, known: Iterable[str], where: str = "") -> str:
    """One line with the given name, its place, the name that may be meant, and the known names."""
    names = sorted(known)
    place = f" in {where}" if where else ""
    suggestion = did_you_mean(given, names) or ";"
    listed, rest = (names, 0) if len(names) <= MOST_NAMES else (names[:12], len(names) - 12)
    more = f" and {rest} more" if rest else ""
    return f"unknown {what} {given!r}{place}{suggestion} known: {', '.join(listed) or 'none'}{more}"


def in_one_line(text: str) -> str:
    """A text as one line that can be printed. It may come from a file or be the name of one."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def one_line(error: BaseException) -> str:
    """An error in one line: the text of a user's mistake, or type and text of any other error."""
    try:
        text = in_one_line(str(error))
    except Exception:  # noqa: BLE001 - an error of a plugin whose own text fails
        text = ""
    if isinstance(error, ZSQBenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
