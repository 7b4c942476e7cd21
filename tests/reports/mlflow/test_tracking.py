import logging
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from brief import parametrize_briefly
from tracked import GENERATE, fill, fill_diagnosis, invoke, row, runs

from zsqbench.errors import ZSQBenchError
from zsqbench.leases import Leases
from zsqbench.reports.mlflow import runs as mlflow_runs
from zsqbench.reports.mlflow import tracking, turns
from zsqbench.reports.mlflow.runs import Details, Ending, Experiment, Invocation, identity
from zsqbench.reports.mlflow.tables import Tables
from zsqbench.reports.mlflow.tracking import Tracker, make_database, move_aside, sync
from zsqbench.steps import KINDS
from zsqbench.store import Store


@pytest.mark.slow("it runs a suite three times")
def test_an_excluded_cell_is_logged_once_however_often_the_suite_runs(store):
    excluded = row("excluded cell", status="excluded", reason="shown once")

    invoke(store, [excluded, row("first")], name="often")
    invoke(store, [excluded, row("second")], name="often")

    assert [run.info.run_name for run in runs(store, "often")[1]].count("excluded cell") == 1


def test_a_cell_that_fails_again_in_the_same_way_is_logged_once(store):
    invoke(store, [row(status="failed", reason="out of memory")], name="again")
    invoke(store, [row(status="failed", reason="out of memory", traceback="of the second time")], name="again")
    invoke(store, [row(status="failed", reason="another")], name="again")

    parents, children = runs(store, "again")
    assert (len(parents), len(children)) == (2, 2)


def test_nothing_that_is_not_held_means_no_run_at_all(store):
    rows = [row(status="excluded", reason="shown once"), row()]
    invoke(store, rows, name="nothing new")

    invoke(store, rows[:1], cached=rows[1:], name="nothing new")

    assert len(runs(store, "nothing new")[0]) == 1


@pytest.mark.parametrize("new", [[], [row("new")]])
def test_a_run_logs_what_an_earlier_one_could_not(store, new):
    name = f"catch up {len(new)}"
    invoke(store, [row("one")], name=name)

    invoke(store, new, cached=[row("one"), row("two"), row("three")], name=name)

    logged = ["one", "two", "three", *(result.cell for result in new)]
    assert sorted(run.info.run_name for run in runs(store, name)[1]) == sorted(logged)
    assert sync([row("one"), row("two"), row("three"), *new], name, store) == 0


def test_a_sync_of_what_a_database_holds_needs_no_mlflow(store, monkeypatch):
    assert sync([row()], "synced", store) == 1
    monkeypatch.setattr(Experiment, "open", lambda *_: pytest.fail("MLflow was opened"))
    assert sync([row(), row("cut short", status="interrupted")], "synced", store) == 0


def test_a_server_is_not_asked_where_nothing_is_new(store, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    monkeypatch.setattr(Experiment, "open", lambda *_: pytest.fail("asked"))

    invoke(store, [], cached=[row()])

    assert caplog.text == ""


def test_two_writers_log_a_cell_once(store, monkeypatch):
    """Both find it missing at first; the second logs it between the first one's look and its turn."""
    read = Details.read
    others = iter([lambda: invoke(store, [row("both")], name="two writers")])

    def slow(result, store):
        next(others, lambda: None)()
        return read(result, store)

    monkeypatch.setattr(Details, "read", slow)

    invoke(store, [row("both")], name="two writers")

    assert [run.info.run_name for run in runs(store, "two writers")[1]] == ["both"]


def test_what_a_killed_logger_left_of_a_cell_is_deleted_and_logged_anew(store, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(Tables, "of", lambda *_: None)  # by calls of the client, as for a server
        killed.setattr("mlflow.MlflowClient.set_terminated", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            sync([row()], "killed", store)
    assert [run.info.status for found in runs(store, "killed") for run in found] == ["RUNNING", "RUNNING"]

    assert sync([row()], "killed", store) == 1

    parents, (cell,) = runs(store, "killed")
    assert ([run.info.status for run in parents], cell.info.status) == (["KILLED", "FINISHED"], "FINISHED")


def test_a_run_that_another_home_is_logging_is_left_alone(store):
    experiment = Experiment.open("other home", store)
    tags = {"zsqbench.row": identity(row()), "zsqbench.home": "another", "mlflow.parentRunId": "another"}
    experiment.client.create_run(experiment.id, tags=tags)

    invoke(store, [row()], name="other home")

    assert sorted(run.info.status for run in runs(store, "other home")[1]) == ["FINISHED", "RUNNING"]


def test_a_parent_run_of_a_living_process_is_not_ended(store):
    alive = Invocation(Experiment.open("alive", store), "run")
    alive.log(row("one"))
    invoke(store, [row("two")], name="alive")

    assert [run.info.status for run in runs(store, "alive")[0]] == ["RUNNING", "FINISHED"]
    alive.finish(Ending([row("one")]))


def test_a_run_waits_for_its_turn_and_then_gives_up_with_one_warning(store, monkeypatch, caplog):
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    with Leases(store.home).hold("mlflow"):
        invoke(store, [row()], name="turns")
        with pytest.raises(ZSQBenchError, match="other processes logged for 0 s"):
            sync([row()], "turns", store)

    assert "MLflow logging stopped (TimeoutError: other processes logged" in caplog.text
    assert caplog.text.count("MLflow") == 1
    assert sync([row()], "turns", store) == 1


@parametrize_briefly("name", ["a?b%41c#d ä", "ä b"], 1)
def test_database_and_artifacts_land_in_a_home_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    odd = Store(tmp_path / name)
    fill(odd)

    invoke(odd, [row()])

    assert sync([row()], "demo", odd) == 0
    (cell,) = runs(odd)[1]
    assert cell.data.metrics["top1"] == 91.5
    assert [file.name for file in (odd.home / "mlartifacts" / cell.info.run_id).rglob("*.json")] == ["diagnostics.json"]
    assert (odd.home / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow("it makes two databases")
def test_a_damaged_database_is_moved_aside_on_demand_and_all_rows_are_logged_anew(tmp_path, caplog):
    home = Store(tmp_path)
    (tmp_path / "mlflow.db").write_text("damaged" * 1000)

    invoke(home, [], cached=[row()])

    damage = f"{tmp_path}/mlflow.db is damaged: file is not a database"
    cure = "`zsqbench mlflow sync demo --move-aside` moves it to mlflow.db.damaged-DATE and logs all rows into a new"
    assert caplog.messages == [f"MLflow logging stopped ({damage}); results are not affected, {cure} one"]
    with pytest.raises(ZSQBenchError, match=re.escape(f"{damage}; {cure}")):
        sync([row()], "demo", home)
    said = move_aside("demo", home)
    (moved,) = [path.name for path in tmp_path.glob("mlflow.db*")]
    assert re.fullmatch(r"mlflow\.db\.damaged-[\dT-]+", moved)
    assert said == f"{tmp_path}/mlflow.db is damaged (file is not a database); it is {moved} now"
    assert (sync([row()], "demo", home), len(runs(home)[1])) == (1, 1)


def test_a_sound_database_is_not_moved(store):
    sync([row()], "sound", store)

    with pytest.raises(
        ZSQBenchError, match=r"nothing to move aside: .* is sound, and its experiment sound not deleted"
    ):
        move_aside("sound", store)

    assert len(runs(store, "sound")[1]) == 1


def test_a_deleted_experiment_can_be_restored_or_replaced(store, caplog):
    sync([row()], "deleted", store)
    experiment = Experiment.open("deleted", store)
    experiment.client.delete_experiment(experiment.id)

    invoke(store, [], cached=[row()], name="deleted")

    (message,) = caplog.messages
    assert f"the experiment deleted (id {experiment.id}) was deleted in MLflow" in message
    assert f"mlflow experiments restore --experiment-id {experiment.id}` restores it" in message
    assert "`zsqbench mlflow sync deleted --move-aside` gives it another name" in message
    assert move_aside("deleted", store).startswith("the deleted experiment deleted is called 'deleted deleted 2")
    assert sync([row()], "deleted", store) == 1
    assert len(runs(store, "deleted")[1]) == 1


def test_the_database_is_looked_at_before_the_page_is_opened(store, tmp_path):
    (tmp_path / "mlflow.db").write_text("damaged" * 1000)

    make_database(store.home)
    with pytest.raises(
        ZSQBenchError, match=r"mlflow.db is damaged: .*; `zsqbench mlflow sync SUITE --move-aside` moves"
    ):
        make_database(tmp_path)


@pytest.mark.slow("it starts two commands, which import mlflow")
def test_the_first_use_of_a_database_is_silent_and_a_cached_run_imports_neither_mlflow_nor_torch(tmp_path):
    script = """
import sys, types
from pathlib import Path
from zsqbench.reports.results import Result
from zsqbench.steps import KINDS
from zsqbench.store import Store
from zsqbench.reports.mlflow.tracking import plugin

suite, plan = types.SimpleNamespace(name="demo"), types.SimpleNamespace(store=Store(Path(sys.argv[1])))
row = Result(suite="demo", cell="c", definition="d", task="t", model="m", generator=None, quantizer="q", scheme="s",
             seed=None, status="done")
plugin.suite_started(suite, plan)
plugin.cell_finished(row, True)
plugin.suite_finished([row], None, None)
assert "torch" not in sys.modules
print("mlflow" in sys.modules)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]

    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))

    assert (first.returncode, first.stdout, first.stderr) == (0, "True\n", "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "False\n", "")


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
        def __init__(self, *_):
            pass

        def log(self, result):
            logged.append(result.cell)
            begun.set()
            answer.wait()

    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    monkeypatch.setattr(Experiment, "open", lambda *_: SimpleNamespace(rows_at_once=1))
    monkeypatch.setattr(tracking, "Invocation", Slow)

    invoke(store, [row("one"), row("two")])
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "mlflow"]
    answer.set()
    writer.join()

    assert logged == ["one"]


@pytest.mark.slow("it runs a suite with its diagnostics")
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
    tracker.suite_finished([row()], None, None)

    (logged,) = runs(store, "handed on")[1]
    assert logged.data.metrics["calibration/difficulty"] == 0.5
