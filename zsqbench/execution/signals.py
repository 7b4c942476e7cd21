"""Signals that end a run. Finished results are kept and a table is written. A second signal ends the run at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from zsqbench.containment import SIGNALS


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Handle SIGINT (Ctrl-C), SIGTERM (time limit of a cluster) and SIGHUP (closed terminal) alike during a run.

    The first signal raises Interrupted in the main thread. Within `deferred` it is only noted. The second signal ends
    the process at once, and the guard then ends the workers. A signal that is ignored (nohup) or has another handler is
    left alone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal. None: no signal came."""
        self._deferred = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals meanwhile. Python allows handlers only in the main thread; in others nothing changes."""
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
        """Only note a signal meanwhile. The block is short and must not be interrupted."""
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
