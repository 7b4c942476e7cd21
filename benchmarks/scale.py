"""How the harness grows with the number of cells: 100, 1,000 and 10,000 cells of methods that do nothing.

Run `python benchmarks/scale.py`; 10,000 cells take five to thirty minutes. It prints seconds of CPU: those of a command
with all processes that it starts, less those of `--help`. `pace` is what a fixed piece of work took right after it, in
the same seconds: a machine that others use, or that was busy for a while, needs more of them for the same. Bounds are
for 10,000 cells. `--cells N` takes one size. `--quick` takes 50 cells, to see that it runs: its figures mean nothing.
"""

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness import show, suite

SIZES = {50: (1, 10), 100: (2, 10), 1000: (20, 10), 10_000: (200, 10)}
"""Quantizers and seeds of a suite of so many cells; each has five schemes."""

PR_SET_CHILD_SUBREAPER = 36

POLL = 0.05
"""Seconds between two looks at the memory of a command, which says its highest value so far."""


@dataclass(frozen=True)
class Cost:
    """The cost of a command with all that it starts."""

    cpu: float
    """Seconds."""
    memory: float
    """MB, the most of the command's own process."""


def cost(*arguments: str, folder: Path) -> Cost:
    """Run a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "zsqbench", *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=_environment())
        ended, most = threading.Event(), [0.0]

        def watch() -> None:
            while not ended.wait(POLL):
                most[0] = max(most[0], _high_water(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        ended.set()
        watcher.join()
        _wait_for_orphans()
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, most[0])


def _environment() -> dict[str, str]:
    """One thread each, and compiled modules on the disk, where a shell may say that Python is to write none."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return own | {"OMP_NUM_THREADS": "1"}


def _high_water(process: int) -> float:
    """The most memory that a process had so far, in MB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def pace() -> float:
    """Seconds of CPU that a fixed piece of work takes now: a machine that was busy for minutes may be slower."""
    start = time.process_time()
    numbers: dict[int, str] = {}
    for number in range(2_000_000):
        numbers[number % 1000] = str(number)
    return time.process_time() - start


def _wait_for_orphans() -> None:
    """Processes that outlive their parents come to this one, so that their CPU is counted, too."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def measure(cells: int, folder: Path) -> None:
    """All figures of a suite of so many cells."""
    variants, seeds = SIZES[cells]
    name = suite(folder, f"scale{cells}", seeds=seeds, variants=variants)
    steps = 2 * cells + 2 * seeds  # quantize and evaluate of each cell, generate and diagnose of each seed
    run = ("run", name, f"--home=home{cells}", "--quiet", "--no-plugin", "mlflow", "--isolation", "worker")
    home = ("--home", f"home{cells}")
    cost("plan", name, *home, folder=folder)  # Python compiles modules, where that was not done
    start = cost("--help", folder=folder).cpu

    def figure(what: str, value: float, unit: str, bound: float) -> None:
        show(f"{cells:,} cells: {what} (pace {pace():.2f})", value, unit, bound)

    figure("plan, nothing there", cost("plan", name, *home, folder=folder).cpu - start, "s", 1)
    first = cost(*run, folder=folder)
    figure(f"first run, each of {steps:,} steps", 1000 * (first.cpu - start) / steps, "ms", 8)
    figure("first run, memory of the parent", first.memory, "MB", 300)
    again = cost(*run, folder=folder)
    figure("run where all is there", again.cpu - start, "s", 3)
    figure("leaderboard", cost("leaderboard", name, *home, folder=folder).cpu - start, "s", 2)
    figure("cache verify", cost("cache", "verify", *home, folder=folder).cpu - start, "s", 3)
    figure("mlflow sync", cost("mlflow", "sync", name, *home, folder=folder).cpu - start, "s", 60)
    figure("mlflow sync again", cost("mlflow", "sync", name, *home, folder=folder).cpu - start, "s", 5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--cells", type=int, choices=sorted(SIZES), help="one size only")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    sizes = [50] if arguments.quick else [arguments.cells] if arguments.cells else [100, 1000, 10_000]
    with tempfile.TemporaryDirectory() as name:
        for cells in sizes:
            measure(cells, Path(name))


if __name__ == "__main__":
    main()
