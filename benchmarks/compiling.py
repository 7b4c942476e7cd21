"""What compiling costs, the first time and with the kernels that a home keeps, and what it gives.

Run `python benchmarks/compiling.py`; it prints a line for a step of a generator and one for an update of a quantizer
that trains, on each network: seconds until compiled code ran in a fresh process, in an empty home and in the same home
again, and how many times as fast a compiled step in channels_last is as the default. Steps are measured in processor
time of one thread, so that other work on the machine counts for less; compiling is measured by the clock, with `load`,
the number of processes that wanted a core meanwhile. `--quick` measures a tiny network, to see that it runs: its
figures mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

NETWORKS = {"ResNet-20, 64 x 32 px": (64, 32), "MobileNetV2, 4 x 224 px": (4, 224)}
QUICK = {"ResNet-20 of width 2, 4 x 8 px": (4, 8)}
METHODS = ("zeroq", "dgh", "ste")


def measure(network: str, method: str, home: Path, batch: int, side: int) -> dict[str, float]:
    """Seconds that a first compiled call takes more than a later one, and of steps. Runs in a process of its own."""
    import torch
    import torchvision
    from finetuning import updates
    from synthesis import EFFORT, generator_steps, pretrained

    from zsqbench.execution.kernels import kept_kernels
    from zsqbench.methods import Settings
    from zsqbench.zoo.resnet import CifarResNet

    torch.set_num_threads(1)
    width = 2 if "width 2" in network else 16
    module = torchvision.models.mobilenet_v2() if "Mobile" in network else CifarResNet(20, width=width)
    teacher, steps = pretrained(module, side), updates if method == "ste" else generator_steps
    EFFORT["cpu"] = 3
    fast, found = Settings(layout="channels_last", compile=True), {}
    with kept_kernels(home, "network"):
        for name, settings in (("default", Settings()), ("compiled", fast), ("again", fast)):
            started = time.perf_counter()
            list(steps(method, teacher, batch, settings))
            found[name] = time.perf_counter() - started
        time.perf_counter = time.process_time  # what the steps are timed with
        for name, settings in (("default step", Settings()), ("compiled step", fast)):
            found[name] = statistics.median(x for _ in range(3) for x in steps(method, teacher, batch, settings))
    return {"compiling": found["compiled"] - found["default"], **found}


def in_a_process(*arguments: object) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps(list(map(str, arguments)))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, help="methods")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    if arguments.measure:
        network, method, home, batch, side = arguments.measure
        print(json.dumps(measure(network, method, Path(home), int(batch), int(side))))
        return
    print(f"torch {version('torch')}, {len(os.sched_getaffinity(0))} cores", flush=True)
    for network, (batch, side) in (QUICK if arguments.quick else NETWORKS).items():
        for method in ("zeroq", "ste") if arguments.quick else arguments.only:
            with tempfile.TemporaryDirectory() as home:
                first, second = (in_a_process(network, method, home, batch, side) for _ in range(2))
            faster = second["default step"] / second["compiled step"]
            compiling = f"compiling takes {first['compiling']:.0f} s, then {second['compiling']:.0f} s"
            step = f"a step of {second['default step']:.3f} s is {faster:.2f} x as fast"
            print(f"{method:6} {network:30} {compiling} (load {os.getloadavg()[0]:.1f}); {step}", flush=True)


if __name__ == "__main__":
    main()
