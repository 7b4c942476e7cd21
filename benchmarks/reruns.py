"""Measure the changes that a rerun makes on this machine: one suite twice in new homes, artifact by artifact.

Run `python benchmarks/reruns.py` for the smoke suite on a CPU, `--device cuda` for a GPU, `--suite NAME` for another
suite. `--quick` takes one cell. It prints how many rows and artifacts differ, and by how much at most. On a CPU nothing
may differ: docs/reliability.md promises that. A GPU may change digits.
"""

import argparse
import tempfile
from pathlib import Path

from safetensors.torch import load_file

import zsqbench


def run(suite: str, device: str, select: str | None, home: Path) -> dict[str, dict[str, float]]:
    """Metrics by cell of a run in a new home."""
    places = {"home": home, "results": home / "results", "without": ["mlflow", "progress"]}
    report = zsqbench.run(suite, device=device, select=select, workers=1, **places)
    return {result.cell: result.metrics for result in report.results}


def largest_difference(one: Path, other: Path) -> float:
    """Of all tensors of two files, the largest absolute difference; infinite where they hold other tensors."""
    first, second = load_file(one), load_file(other)
    if {name: tensor.shape for name, tensor in first.items()} != {name: t.shape for name, t in second.items()}:
        return float("inf")
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def main() -> None:
    """Run twice, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one cell, to see that it runs")
    arguments = parser.parse_args()
    select = "noise and rtn and w8a8" if arguments.quick else None
    with tempfile.TemporaryDirectory() as name:
        homes = [Path(name, number) for number in ("one", "other")]
        first, second = (run(arguments.suite, arguments.device, select, home) for home in homes)
        moved = [abs(first[cell][metric] - second[cell][metric]) for cell in first for metric in first[cell]]
        files = sorted(path.relative_to(homes[0]) for path in homes[0].glob("store/*/*/*.safetensors"))
        apart = [largest_difference(homes[0] / file, homes[1] / file) for file in files]
    cells = sum(first[cell] != second[cell] for cell in first)
    print(f"{arguments.suite} twice on {arguments.device}: {cells} of {len(first)} rows differ", flush=True)
    print(f"metrics: by {max(moved):g} at most")
    print(f"tensors: {sum(map(bool, apart))} of {len(files)} files differ, by {max(apart):g} at most")


if __name__ == "__main__":
    main()
