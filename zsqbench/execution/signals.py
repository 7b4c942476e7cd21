"""Signals that end a run: what is done then is kept, a table is written, and a second signal ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from zsqbench.containment import SIGNALS


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """SIGINT (Ctrl-C), SIGTERM (a cluster's time limit) and SIGHUP (a closed terminal) alike, while a run lasts.

    The first raises Interrupted in the main thread, or is only noted while `deferred` holds. The second ends the
    process at once; the guard ends the workers then. A signal that is ignored (nohup) or handled otherwise stays so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that came."""
        self._deferred = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them meanwhile. Outside of the main thread, where Python allows no handlers, nothing changes."""
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.Signals[name] for name in SIGNALS):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    before[number] = signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal meanwhile: what runs is short and has to end well."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = int(number)
        if not self._deferred:
            raise Interrupted(number)
