"""The smoke suite as a user runs it: the command, the pool, MLflow, the files that it leaves."""

import json
import os
import subprocess
import sys

import pytest


def zsqbench(*arguments, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ZSQBENCH", "MLFLOW"))}
    command = [sys.executable, "-m", "zsqbench", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_the_smoke_suite_runs_is_found_again_and_is_in_mlflow(tmp_path):
    first = zsqbench("run", "smoke", "--workers", "2", folder=tmp_path)

    assert (first.returncode, "Traceback" in first.stderr) == (0, False), first.stderr
    rows = [json.loads(line) for line in (tmp_path / "results/smoke.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 7
    by_cell = {row["cell"]: row for row in rows}
    control = by_cell["digits:resnet20:none:fp32:float:-"]
    assert control["metrics"]["top1"] == control["float_metrics"]["top1"] >= 98
    noise, real = (
        by_cell[f"digits:resnet20:{name}_short:rtn:hw/w4a4:0"]["metrics"]["top1"] for name in ("noise", "real")
    )
    assert noise < real
    assert (tmp_path / "results/smoke.md").read_text() == first.stdout

    second = zsqbench("run", "smoke", folder=tmp_path)

    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert "0 steps to do" in second.stderr

    synced = zsqbench("mlflow", "sync", "smoke", folder=tmp_path)

    assert synced.stdout == "0 of 7 cells were missing and are logged now\n", synced.stderr
