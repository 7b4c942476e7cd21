"""End processes and the processes that they started. As a script, it ends workers when their parent dies.

This module imports nothing of zsqbench, so that a guard starts at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Sequence

import psutil


def known(pid: int) -> psutil.Process | None:
    """The process that has this number now, with the time of its start. None: it has ended."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants. Empty: it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def end_tree(pid: int, process: psutil.Process | None, before: Sequence[psutil.Process] = ()) -> None:
    """Kill the leader of a process group and its descendants. `before` are descendants of a while ago.

    `process` is the process that had this number at its start. If another process has the number now, the other process
    and its group are left alone.
    """
    is_another = psutil.pid_exists(pid) and (process is None or not process.is_running())
    for each in {*before, *([] if is_another else tree(pid))}:
        with contextlib.suppress(psutil.Error):
            each.kill()
    if not is_another:
        with contextlib.suppress(OSError):  # orphans of a process that has ended by itself
            os.killpg(pid, signal.SIGKILL)


def guard(lines: Iterable[str]) -> None:
    """Read which processes to watch and which to stop watching. When the input ends, end the watched processes."""
    watched: dict[int, psutil.Process | None] = {}
    for line in lines:
        what, number = line.split()
        pid = int(number)
        if what == "watch":
            watched[pid] = known(pid)
        else:
            watched.pop(pid, None)
    for left, process in watched.items():
        end_tree(left, process)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    guard(sys.stdin)
