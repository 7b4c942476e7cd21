"""Call what strangers wrote: whatever it raises is its failure, and a signal to this process is still obeyed."""

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
    """The end of a process in words, `exit code 3` or `signal 11 (SIGSEGV)`, by its code as Python gives it."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


@dataclass
class Contained:
    """The result of a call that may raise anything."""

    error: BaseException | None = None
    """The exception that it raised, if any: SystemExit and its own KeyboardInterrupt, too."""


@contextlib.contextmanager
def contain() -> Iterator[Contained]:
    """Keep whatever is raised within, and let what follows go on.

    Raises only what the handler of a signal raised meanwhile, such as KeyboardInterrupt for a Ctrl-C, even where the
    code within swallowed it: a stranger's `raise KeyboardInterrupt` is no signal. Working folder and handlers of
    signals are what they were, afterwards.
    """
    contained = Contained()
    with _watch_signals() as raised, _same_folder():
        try:
            yield contained
        except BaseException as error:  # noqa: BLE001 - strangers may raise anything
            contained.error = error
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _same_folder() -> Iterator[None]:
    """Come back to the working folder, which relative paths of the command stand on; it may have been removed."""
    folder = None
    with contextlib.suppress(OSError):
        folder = Path.cwd()
    yield
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


@contextlib.contextmanager
def _watch_signals() -> Iterator[list[BaseException]]:
    """Note what handlers of signals raise. Python runs them in its main thread alone."""
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
