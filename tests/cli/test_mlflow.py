import subprocess
from types import SimpleNamespace

import pytest

from zsqbench.reports.mlflow import tracking


@pytest.fixture
def rows(bench, monkeypatch):
    """The rows of a suite, and what is asked of MLflow."""
    asked = []
    bench.run()
    monkeypatch.setattr(tracking, "move_aside", lambda name, _: asked.append(("aside", name)) or "moved")
    monkeypatch.setattr(tracking, "sync", lambda results, name, _: asked.append(("sync", name)) or len(results))
    return asked


def test_sync_moves_nothing_aside_unless_it_is_told_to(bench, rows):
    said = bench.zsqbench("mlflow", "sync", bench.file, "--home", bench.home, "--results", bench.results)

    assert (said.code, said.out) == (0, "2 of 2 cells were missing and are logged now\n")
    assert rows == [("sync", "toysuite")]


def test_sync_says_what_it_moved_aside(bench, rows):
    said = bench.zsqbench(
        "mlflow", "sync", bench.file, "--move-aside", "--home", bench.home, "--results", bench.results
    )

    assert (said.code, said.out) == (0, "moved\n2 of 2 cells were missing and are logged now\n")
    assert rows == [("aside", "toysuite"), ("sync", "toysuite")]


def test_the_page_is_opened_on_the_database_of_the_home(bench, monkeypatch):
    commands, made = [], []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "make_database", made.append)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0)
    )

    said = bench.zsqbench("mlflow", "ui", "--home", bench.home, "--port", "5001")

    assert (said.code, made) == (0, [bench.home])
    assert commands[0][2:] == [
        "mlflow",
        "ui",
        "--backend-store-uri",
        f"sqlite:///{bench.home}/mlflow.db",
        "--port",
        "5001",
    ]


def test_the_page_of_a_server_is_named(bench, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")

    assert bench.zsqbench("mlflow", "ui").out == "the results are on the MLflow server http://localhost:9\n"
