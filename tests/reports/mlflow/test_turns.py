import subprocess
import sys

import pytest

from zsqbench.reports.mlflow import turns
from zsqbench.reports.mlflow.turns import Turns


def test_a_turn_is_waited_for_and_the_waiting_is_told(tmp_path):
    one, waited = Turns.of(tmp_path), []
    holding = one.take()
    holding.__enter__()

    def waiting():
        waited.append(True)
        if len(waited) == 2:
            holding.__exit__(None, None, None)

    with Turns.of(tmp_path, waiting).take():
        assert len(waited) == 2
    assert len(waited) == 3  # the turn is over


def test_a_turn_ends_with_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), Turns.of(tmp_path).take():
        1 / 0  # noqa: B018

    with Turns.of(tmp_path).take():
        pass


def test_waiting_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.0)

    with (
        Turns.of(tmp_path).take(),
        pytest.raises(TimeoutError, match="other processes logged"),
        Turns.of(tmp_path).take(),
    ):
        pass


def test_an_invocation_is_alive_until_it_ends(tmp_path):
    one, other = Turns.of(tmp_path), Turns.of(tmp_path)

    one.begin("run")
    alive = other.is_alive("run")
    one.end("run")

    assert (alive, other.is_alive("run")) == (True, False)


def test_an_invocation_of_a_killed_process_is_dead_at_once(tmp_path):
    script = "import sys, os, pathlib; from zsqbench.reports.mlflow.turns import Turns\n"
    script += "turns = Turns.of(pathlib.Path(sys.argv[1])); turns.begin('run'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    left = [file.name for file in (tmp_path / "leases").iterdir()]

    assert (left, Turns.of(tmp_path).is_alive("run")) == (["mlflow-run.lease"], False)


def test_homes_are_told_apart(tmp_path):
    assert Turns.of(tmp_path).home != Turns.of(tmp_path / "other").home
