"""What the harness itself costs: start, planning, cached cells, warm steps, and two workers against one.

Run `python benchmarks/harness.py` on an otherwise idle machine; it prints one line for each figure, with the bound that
the project set itself. Everything runs in a temporary folder with a method that does nothing, except the comparison of
workers, which runs ZeroQ on the embedded networks with one thread each. `--quick` measures each once, on few cells, and
compares workers on round to nearest, to see that it runs: its figures mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTHING = '''
"""Methods that do nothing, so that only the harness is left."""
import zsqbench

class Nothing(zsqbench.Generator):
    """Zeros."""
    name = "nothing"
    images: int = 1
    def generate(self, teacher, ctx):
        import torch
        return zsqbench.CalibrationSet(torch.zeros(self.images, *teacher.input_size))

class Same(zsqbench.Quantizer):
    """The network as it is."""
    name = "same"
    tag: int = 0
    def prepare(self, teacher, scheme):
        import copy
        return copy.deepcopy(teacher.module)
    def quantize(self, student, teacher, data, ctx):
        pass

class Half(zsqbench.Task):
    """Every second sample is right."""
    name = "half"
    metric = "top1"
    def find_data(self, data_root):
        return zsqbench.DataFiles({}, {})
    def find_model(self, model):
        return {}
    def load(self, model, ctx):
        import torch
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10)]
        return zsqbench.Pretrained(torch.nn.Sequential(*layers), (1, 8, 8), (0.0,), (1.0,), classes=10)
    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0}, [True, False] * 50)
    def calibration_images(self, count, seed, pretrained, ctx):
        import torch
        return zsqbench.CalibrationSet(torch.zeros(count, *pretrained.input_size))

@zsqbench.hookimpl
def register_generators():
    return [Nothing]

@zsqbench.hookimpl
def register_quantizers():
    return [Same]

@zsqbench.hookimpl
def register_tasks():
    return [Half]
'''


def zsqbench(*arguments: str, folder: Path) -> float:
    """Seconds of one command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zsqbench", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - started


def suite(folder: Path, name: str, seeds: int = 1, options: int = 1, variants: int = 1) -> str:
    """Write a suite with 5 schemes x options x variants x seeds cells of methods that do nothing."""
    (folder / "nothing.py").write_text(NOTHING)
    content = {
        "name": name,
        "plugins": ["nothing.py"],
        "generators": {f"g{index}": {"method": "nothing", "images": index + 1} for index in range(options)},
        "quantizers": {f"q{tag}": {"method": "same", "tag": tag} for tag in range(variants)},
        "matrix": [
            {
                "task": "half",
                "model": "any",
                "generator": [f"g{index}" for index in range(options)],
                "quantizer": [f"q{tag}" for tag in range(variants)],
                "scheme": [f"hw/w{bits}a{bits}" for bits in (2, 3, 4, 6, 8)],
                "seed": list(range(seeds)),
            }
        ],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(content))
    return f"{name}.yaml"


def show(what: str, figure: float, unit: str, bound: float, *, at_least: bool = False) -> None:
    """One line for one figure."""
    held = figure >= bound if at_least else figure < bound
    relation = "at least" if at_least else "under"
    print(f"{what:52} {figure:8.3f} {unit:3} ({relation} {bound} {unit}: {'held' if held else 'MISSED'})", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    variants, times = (2, 1) if quick else (40, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show("--help", statistics.median(zsqbench("--help", folder=folder) for _ in range(times)), "s", 0.3)

        big, small = suite(folder, "big", seeds=100, options=1 if quick else 20), suite(folder, "small")
        planning = [min(zsqbench("plan", each, folder=folder) for _ in range(times)) for each in (small, big)]
        cells = "500 cells" if quick else "10,000 cells"
        show(f"planning {cells}, beyond start-up", planning[1] - planning[0], "s", 1)

        quiet = ("--workers", "0", "--quiet", "--no-plugin", "mlflow")
        large = suite(folder, "large", variants=variants)
        zsqbench("run", small, *quiet, "--home", "first", folder=folder)  # reads libraries from the disk
        cold_small, cold_large = (zsqbench("run", each, *quiet, folder=folder) for each in (small, large))
        steps = 10 * (variants - 1)  # of each further variant: quantize and evaluate of five cells; no pictures
        show("a step with a warm worker, small model", 1000 * (cold_large - cold_small) / steps, "ms", 20)

        warm = [zsqbench("run", each, *quiet, folder=folder) for each in (small, large)]
        show("a cached cell", 1000 * (warm[1] - warm[0]) / (5 * (variants - 1)), "ms", 2)

        what, cells = (
            ("rtn", "resnet20 and noise and rtn and pot") if quick else ("ZeroQ on two networks", "zeroq and w4a4")
        )
        job = ("run", "hw_friendly", "-k", cells, "--no-plugin", "mlflow", "--quiet")
        seconds = [zsqbench(*job, "--workers", str(n), "--home", f"home{n}", folder=folder) for n in (1, 2)]
        show(f"one worker against two, {what}", seconds[0] / seconds[1], "x", 1.6, at_least=True)


if __name__ == "__main__":
    main()
