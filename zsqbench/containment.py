"""Call code of plugins. Any exception is a failure of that code. Signals to this process still have their effect."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""The signals that end a command."""


def describe_exit(code: int) -> str:
    """How a process ended, in words (`exit code 3`, `signal 11 (SIGSEGV)`), from its code in Python's form."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


@dataclass
class Contained:
    """The result of a call that may raise anything."""

    error: BaseException | None = None
    """The exception that it raised, if any. SystemExit and its own KeyboardInterrupt count, too."""


@contextlib.contextmanager
def contain() -> Iterator[Contained]:
    """Keep any exception that is raised within, and let the code behind the block go on.

    Raises only exceptions of signal handlers, such as KeyboardInterrupt for a Ctrl-C, even if the code within swallowed
    them. A `raise KeyboardInterrupt` of the code within is not a signal. Afterwards the working folder and the signal
    handlers are the same as before.
    """
    contained = Contained()
    with _watch_signals() as raised, _same_folder():
        try:
            yield contained
        except BaseException as error:  # noqa: BLE001 - code of plugins may raise anything
            contained.error = error
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _same_folder() -> Iterator[None]:
    """Return to the working folder, because relative paths of the command start there. It may have been removed."""
    folder = None
    with contextlib.suppress(OSError):
        folder = Path.cwd()
    yield
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


@contextlib.contextmanager
def _watch_signals() -> Iterator[list[BaseException]]:
    """Note exceptions of signal handlers. Python runs these only in its main thread."""
    raised: list[BaseException] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (getattr(signal, name) for name in SIGNALS if hasattr(signal, name))
        before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        for number, handler in before.items():
            signal.signal(number, _noting(handler, raised))
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _noting(
    handler: Callable[[int, FrameType | None], Any], raised: list[BaseException]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    return handle
