"""End processes with all that they started; run as a script, guard workers against the death of their parent.

It imports nothing of zsqbench, so that a guard starts at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Sequence

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, however they were started; nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def end_tree(pid: int, before: Sequence[psutil.Process] = ()) -> None:
    """Kill a process that leads a group, with all that it started; `before` was below it a while ago."""
    for process in {*before, *tree(pid)}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(OSError):  # orphans of a process that has ended by itself
        os.killpg(pid, signal.SIGKILL)


def guard(lines: Iterable[str]) -> None:
    """Read which processes to watch and which to leave; end those that are left when nothing more comes."""
    watched: set[int] = set()
    for line in lines:
        what, pid = line.split()
        (watched.add if what == "watch" else watched.discard)(int(pid))
    for left in watched:
        end_tree(left)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    guard(sys.stdin)
