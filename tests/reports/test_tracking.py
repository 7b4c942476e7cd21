import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from tracked import GENERATE, fill, fill_diagnosis, invoke, row, runs

from zsqbench.errors import ZSQBenchError
from zsqbench.reports import mlflow_runs, tracking
from zsqbench.reports.mlflow_runs import Experiment
from zsqbench.reports.tracking import Tracker, sync
from zsqbench.steps import KINDS
from zsqbench.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def test_an_excluded_cell_is_logged_once_however_often_the_suite_runs(store):
    excluded = row("excluded cell", status="excluded", reason="shown once")

    invoke(store, [excluded, row("first")], name="often")
    invoke(store, [excluded, row("second")], name="often")

    assert [run.info.run_name for run in runs(store, "often")[1]].count("excluded cell") == 1


def test_a_cell_that_fails_again_is_logged_again(store):
    failed = row(status="failed", reason="out of memory")

    invoke(store, [failed], name="again")
    invoke(store, [failed], name="again")

    parents, children = runs(store, "again")
    assert (len(parents), len(children)) == (2, 2)


def test_nothing_new_means_no_run_at_all(store):
    invoke(store, [row(status="excluded", reason="shown once")], cached=[row()], name="nothing new")

    assert runs(store, "nothing new") == ([], [])


def test_the_first_use_of_a_database_is_silent_and_a_cached_run_imports_neither_mlflow_nor_torch(tmp_path):
    script = """
import sys, types
from pathlib import Path
from zsqbench.reports.results import Result
from zsqbench.steps import KINDS
from zsqbench.store import Store
from zsqbench.reports.tracking import plugin

suite, plan = types.SimpleNamespace(name="demo"), types.SimpleNamespace(store=Store(Path(sys.argv[1])))
row = Result(suite="demo", cell="c", definition="d", task="t", model="m", generator=None, quantizer="q", scheme="s",
             seed=None, status="done")
plugin.suite_started(suite, plan)
plugin.cell_finished(row, True)
plugin.suite_finished([row], None)
assert not {"mlflow", "torch"} & set(sys.modules)
plugin.suite_started(suite, plan)
plugin.cell_finished(row, False)
plugin.suite_finished([row], None)
assert "mlflow" in sys.modules
"""
    command = [sys.executable, "-c", script, str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()


def test_mlflow_failing_is_one_warning_and_sync_repairs_it(store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    rows = [row("one"), row("two", status="failed", reason="out of memory"), row("three")]

    with monkeypatch.context() as broken:
        broken.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
        invoke(store, rows, name="repaired")

    (warning,) = [record for record in caplog.records if record.name == "zsqbench"]
    assert warning.levelno == logging.WARNING
    assert "`zsqbench mlflow sync repaired` logs what is missing" in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert [sync(rows, "repaired", store), sync(rows, "repaired", store)] == [3, 0]
    parents, children = runs(store, "repaired")
    assert (len(parents), len(children)) == (1, 3)


def test_sync_says_in_one_line_that_mlflow_cannot_be_written(store, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")

    with pytest.raises(ZSQBenchError, match=r"cannot log to MLflow at sqlite:///.*/file/mlflow.db: FileExistsError"):
        sync([row()], "demo", store)


def test_a_file_store_is_refused_by_mlflow_with_a_warning_only(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))

    invoke(store, [row()])

    assert "MLflow logging stopped (MlflowException: " in caplog.text


def test_an_mlflow_that_does_not_answer_holds_nothing_up(store, monkeypatch, caplog):
    answer = threading.Event()

    def time_out(*_):
        answer.wait()
        raise TimeoutError

    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    monkeypatch.setattr(Experiment, "open", time_out)

    invoke(store, [row()], name="patient")
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "mlflow"]
    answer.set()
    writer.join()

    assert caplog.text.count("MLflow logging stopped") == 1
    assert "no answer for" in caplog.text


def test_what_is_left_in_the_queue_when_waiting_ends_is_not_logged(store, monkeypatch, caplog):
    begun, answer, logged = threading.Event(), threading.Event(), []

    class Slow:
        def log(self, result):
            logged.append(result.cell)
            begun.set()
            answer.wait()

    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    monkeypatch.setattr(Experiment, "open", lambda *_: SimpleNamespace(start=lambda _: Slow()))

    invoke(store, [row("one"), row("two")])
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "mlflow"]
    answer.set()
    writer.join()

    assert logged == ["one"]


def test_the_tracker_hands_on_what_was_diagnosed_in_a_run(tmp_path, store, monkeypatch):
    late = Store(tmp_path)
    fill(late, diagnosed=False)
    monkeypatch.setattr(mlflow_runs, "tracking_uri", lambda _: f"sqlite:///{store.home / 'mlflow.db'}")
    tracker = Tracker()
    tracker.suite_started(SimpleNamespace(name="handed on"), SimpleNamespace(store=late))
    tracker.cell_finished(row(), cached=False)
    fill_diagnosis(late)
    for kind in ("quantize", "diagnose"):
        step = SimpleNamespace(kind=kind, type=KINDS[kind], needs=[SimpleNamespace(key=GENERATE)])
        tracker.step_finished(step, SimpleNamespace(status="done"))
    tracker.suite_finished([row()], None)

    (logged,) = runs(store, "handed on")[1]
    assert logged.data.metrics["calibration/difficulty"] == 0.5
