"""Each benchmark runs, in its shortest form; what it measures then means nothing."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py"))
SLOW = {
    "compiling": "it compiles C++, which takes a minute",
    "detection": "it evaluates a detector, which takes seconds",
    "networks": "it prepares three networks, which takes seconds",
    "reconstruction": "it learns units, which takes seconds",
    "significance": "it simulates columns of methods, which takes half a minute",
    "reruns": "it runs a suite twice",
    "synthesis": "it makes images, which takes seconds",
    "finetuning": "it trains students, which takes seconds",
    "export": "it exports three networks, which takes half a minute of a CPU",
    "scale": "it runs a suite of 50 cells twice, and logs it to MLflow, which takes a minute",
    "ray_engine": "it starts three nodes of a Ray, which takes half a minute",
    "harness": "it starts ten processes that import torch, which takes a minute of a CPU",
}


@pytest.fixture
def quickly(monkeypatch, capsys):
    """Run a script with --quick in this process, as it would run by itself; returns what it printed."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32

    def run(name):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--quick"])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = tf32
    sys.modules.pop("synthesis", None)  # which others import, and which --quick shortened


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow(SLOW[name]) if name in SLOW else ()) for name in SCRIPTS]
)
def test_a_benchmark_runs_and_prints_its_figures(name, quickly):
    if name == "ray_engine":
        pytest.importorskip("ray", reason="it needs Ray: pip install '.[ray]'")
    lines = quickly(name).splitlines()
    assert len(lines) >= 3, lines
    assert all(any(character.isdigit() for character in line) for line in lines)
