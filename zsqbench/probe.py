"""Try dangerous actions in a copy of this process, such as an import that calls exit in C or crashes."""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from zsqbench.containment import SIGNALS, describe_exit

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

POLL_SECONDS = 0.05
"""Seconds between looks at a copy. Its child may still hold the connection, so the end is not seen otherwise."""
END_SECONDS = 1.0
"""A copy that closed its connection has so many seconds to end."""


def can_probe() -> bool:
    """True if a copy of this process is possible and useful.

    It is not possible on macOS, because its frameworks abort in a copy. It is not useful in a worker, because the end
    of a worker is only a failed step. A process that has loaded torch, such as a notebook, is copied, too: see
    `_prepare`.
    """
    return hasattr(os, "fork") and sys.platform != "darwin" and multiprocessing.parent_process() is None


def find_fatal(actions: Sequence[Callable[[], object]]) -> dict[int, str]:
    """Find the actions that end a process when they run one after the other, and how. They do not run in this process.

    Actions may raise, print or leave data in memory. This does not matter. After a fatal action the others are tried
    again without it.
    """
    fatal: dict[int, str] = {}
    while True:
        found = _first_fatal([(index, action) for index, action in enumerate(actions) if index not in fatal])
        if found is None:
            return fatal
        index, how = found
        fatal[index] = how


def _first_fatal(actions: Sequence[tuple[int, Callable[[], object]]]) -> tuple[int, str] | None:
    """The first action that ends a copy of this process, and how. None: no action does, or no copy can be made."""
    context = multiprocessing.get_context("fork")
    try:
        receiver, sender = context.Pipe(duplex=False)
        copy = context.Process(target=_do_all, args=(actions, sender), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads; `_prepare` says why it works
            copy.start()
    except OSError:  # no more processes or files; the code that needs them reports it
        return None
    try:
        sender.close()
        doing, done = _follow(copy, receiver)
        return None if done or doing is None else (doing, _describe(copy.exitcode))
    finally:
        receiver.close()
        _end(copy)


def _follow(copy: "ForkProcess", receiver: Connection) -> tuple[int | None, bool]:
    """The last action that a copy began, and true if it completed all actions."""
    doing: int | None = None
    while True:
        wait([receiver, copy.sentinel], POLL_SECONDS)
        ended = copy.exitcode is not None  # before the connection is read, so that nothing is missed
        try:
            while receiver.poll():
                message = receiver.recv()
                if message is None:
                    return doing, True
                doing = message
        except (EOFError, OSError):
            _wait_for_end(copy)
            return doing, False
        if ended:
            return doing, False


def _wait_for_end(copy: "ForkProcess") -> None:
    """Give a copy that closed its connection time to end. `join` would wait forever for a program that replaced it."""
    deadline = time.monotonic() + END_SECONDS
    while copy.exitcode is None and time.monotonic() < deadline:
        time.sleep(END_SECONDS / 200)


def _end(copy: "ForkProcess") -> None:
    """End a copy and the processes that it started."""
    assert copy.pid is not None  # noqa: S101 - it was started
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(copy.pid, signal.SIGKILL)
    copy.kill()
    copy.join()
    copy.close()


def _describe(exit_code: int | None) -> str:
    if exit_code is None:
        return "replaced the process by another program"
    return f"ended the process with {describe_exit(exit_code)}"


def _do_all(actions: Sequence[tuple[int, Callable[[], object]]], sender: Connection) -> None:
    """The main function of the copy."""
    try:
        _prepare()
        for index, action in actions:
            sender.send(index)
            with contextlib.suppress(BaseException):
                action()
        sender.send(None)
    finally:
        os._exit(0)  # no exit handler of the parent runs


def _prepare() -> None:
    """Make a copy that prints nothing, leaves nothing, ends with its parent, and does not wait for lost threads.

    A fork keeps only one thread. The locks of Python and of the C library are made new, but the threads of torch are
    not. So torch computes with one thread here, and an import that computes does not wait for lost threads. CUDA raises
    an error in a copy, which does not matter here.
    """
    os.setpgid(0, 0)
    _end_with_parent()
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the end
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    """Let Linux end this process when its parent ends. On other systems it ends when it is done."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
