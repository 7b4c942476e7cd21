import json
import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pluggy
import pytest
from safetensors.numpy import save_file

from zsqbench import hookspecs
from zsqbench.errors import ZSQBenchError
from zsqbench.reports import tracking
from zsqbench.reports.diagnosis import diagnose_key
from zsqbench.reports.mlflow_runs import CURVE_POINTS, Experiment, identity
from zsqbench.reports.results import Result
from zsqbench.reports.tracking import Tracker, sync
from zsqbench.store import Store

# SQLAlchemy 2.1 deprecates a loader strategy that MLflow 3 uses; only MLflow can change that.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

GENERATE, QUANTIZE = "a" * 64, "b" * 64


def row(cell="digits:resnet20:zeroq:rtn:hw/w4a4:0", **changes):
    fields = {
        "suite": "demo",
        "cell": cell,
        "definition": "some hash",
        "task": "digits",
        "model": "resnet20",
        "generator": "zeroq",
        "quantizer": "rtn",
        "scheme": "hw/w4a4",
        "seed": 0,
        "settings": {"precision": "fp32"},
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": 91.5},
        "float_metrics": {"top1": 98.0},
        "methods": {
            "generator": {"method": "zeroq", "version": 2, "options": {"iterations": 500, "loss": {"bn": 1.0}}},
            "quantizer": {"method": "rtn", "version": 1, "options": {"search": "lp", "fold": True}},
        },
        "data": {"evaluated": 902, "calibrated": 10},
        "keys": {"generate": GENERATE, "quantize": QUANTIZE},
        "seconds": {"generate": 2.5, "quantize": 0.5},
        "peak_memory": {"generate": 1024},
    }
    return Result(**fields | changes)


DIAGNOSTICS = {
    "set": {
        "images": 10,
        "bn_gaps": [{"layer": "bn1", "gap": 0.2}, {"layer": "bn2", "gap": 0.3}],
        "difficulty": {"by": "label", "mean": 0.5},
        "class_balance": None,
        "diversity": None,
        "pixels": {"outside": 0.0},
        "absent": {},
    },
    "real": None,
    "output_range_ratio": None,
    "absent": {"real": "the task has none"},
}


def fill_diagnosis(store):
    """Diagnostics of the set of `row`, with blank pictures."""

    def diagnosed(folder):
        (folder / "diagnostics.json").write_text(json.dumps(DIAGNOSTICS))
        for name in ("diagnostics.png", "images.png"):
            (folder / name).write_bytes(b"blank")

    job = {"task": {"method": "classification", "options": {}}, "version": "1"}
    store.write("diagnose", diagnose_key(GENERATE, "d" * 64), {"job": job}, diagnosed)


def fill(store, images=None, diagnosed=True, curves='{"loss": [[0, 3.0], [10, 1.0]]}'):
    """The artifacts of the steps of `row`."""

    def generated(folder):
        images_ = (
            np.linspace(-1, 1, 10 * 3 * 8 * 8, dtype=np.float32).reshape(10, 3, 8, 8) if images is None else images
        )
        save_file({"images": images_}, folder / "calibration.safetensors")
        (folder / "curves.json").write_text(curves)

    store.write("generate", GENERATE, {}, generated)
    if diagnosed:
        fill_diagnosis(store)
    store.write("quantize", QUANTIZE, {}, lambda folder: (folder / "curves.json").write_text('{"mse": [[0, 0.5]]}'))


def invoke(store, new=(), cached=(), name="demo", table=None):
    """What the harness does in one run, through the hooks."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Tracker())
    manager.check_pending()
    suite = SimpleNamespace(name=name)
    manager.hook.suite_started(suite=suite, plan=SimpleNamespace(store=store))
    for results, known in ((cached, True), (new, False)):
        for result in results:
            manager.hook.cell_finished(suite=suite, result=result, cached=known)
    manager.hook.suite_finished(suite=suite, results=[*cached, *new], table=table)


def runs(store, name="demo"):
    """Parent runs, and the runs of cells, oldest first."""
    experiment = Experiment.open(name, store)
    found = experiment.client.search_runs([experiment.id], order_by=["attributes.start_time"])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return [run for run in found if run not in children], children


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tracking.DEFAULTS.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_RUN_ID", "f" * 32)  # what a stray one breaks: mlflow issue 15713
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory, environment):
    """A store whose database is there: making one takes seconds."""
    store = Store(tmp_path_factory.mktemp("home"))
    fill(store)
    return store


@pytest.fixture(scope="module")
def logged(store):
    """Parent and cells of one invocation, by status."""
    table = store.home / "demo.md"
    table.write_text("# demo")
    new = [
        row(),
        row("failed cell", status="failed", metrics={}, reason="quantize: out of memory", traceback="Traceback: here"),
        row("excluded cell", status="excluded", metrics={}, keys={}, reason="shown once"),
        row("interrupted cell", status="interrupted", metrics={}),
    ]
    invoke(store, new, cached=[row("cached cell")], table=str(table))
    (parent,), children = runs(store)
    client = Experiment.open("demo", store).client
    by_status = {run.data.tags["zsqbench.status"]: run for run in children}
    return SimpleNamespace(client=client, parent=parent, children=children, **by_status)


def artifacts(logged, run):
    return {file.path for file in logged.client.list_artifacts(run.info.run_id)}


def test_one_parent_run_holds_a_run_for_each_new_cell(logged):
    assert [run.info.run_name for run in logged.children] == [row().cell, "failed cell", "excluded cell"]
    assert {run.data.tags["mlflow.parentRunId"] for run in logged.children} == {logged.parent.info.run_id}


def test_the_parent_run_says_which_suite_and_version_it_is_and_how_cells_ended(logged):
    assert logged.parent.data.tags["zsqbench.suite"] == "demo"
    assert "zsqbench.version" in logged.parent.data.tags
    assert logged.parent.data.metrics == {
        "cells.done": 2,
        "cells.failed": 1,
        "cells.excluded": 1,
        "cells.interrupted": 1,
    }


def test_the_table_is_an_artifact_of_the_parent_run(logged):
    assert artifacts(logged, logged.parent) == {"demo.md"}


def test_an_interrupted_invocation_ends_as_killed(logged):
    assert logged.parent.info.status == "KILLED"


def test_params_are_flat_options(logged):
    assert logged.done.data.params == {
        "task": "digits",
        "model": "resnet20",
        "generator": "zeroq",
        "quantizer": "rtn",
        "scheme": "hw/w4a4",
        "seed": "0",
        "generator.method": "zeroq",
        "generator.version": "2",
        "generator.iterations": "500",
        "generator.loss.bn": "1.0",
        "quantizer.method": "rtn",
        "quantizer.version": "1",
        "quantizer.search": "lp",
        "quantizer.fold": "true",
        "settings.precision": "fp32",
    }


def test_metrics_are_final_values_and_the_ends_of_curves(logged):
    assert logged.done.data.metrics == {
        "top1": 91.5,
        "float.top1": 98.0,
        "drop": 6.5,
        "seconds.generate": 2.5,
        "seconds.quantize": 0.5,
        "peak_memory.generate": 1024,
        "generate/loss": 1.0,
        "quantize/mse": 0.5,
        "calibration/bn_gap": 0.25,
        "calibration/bn_gap_worst": 0.3,
        "calibration/difficulty": 0.5,
        "calibration/pixels_outside": 0.0,
    }


def test_the_oracle_is_logged_beside_the_result_with_its_curve(tmp_path, store):
    other = Store(tmp_path)
    other.write("oracle", "c" * 64, {}, lambda folder: (folder / "curves.json").write_text('{"top1": [[4, 90.0]]}'))
    oracle = {"epoch": 8, "metrics": {"top1": 92.5}, "of": 3}

    tracking.Invocation(replace(Experiment.open("oracle", store), store=other), "parent").log(
        row(oracle=oracle, keys={"oracle": "c" * 64})
    )

    (run,) = runs(store, "oracle")[1]
    found = {name: value for name, value in run.data.metrics.items() if "oracle" in name or name == "top1"}
    assert found == {"top1": 91.5, "oracle.top1": 92.5, "oracle.epoch": 8, "oracle.of": 3, "oracle/top1": 90.0}


def test_params_say_what_a_quantizer_starts_from(store):
    start = {"method": "brecq", "version": 3, "options": {"weight_iterations": 100}}
    method = {"method": "ste", "version": 1, "options": {"start": "short"}, "start": start}

    invoke(store, [row(methods={"quantizer": method})], name="starts")

    (run,) = runs(store, "starts")[1]
    found = {name: value for name, value in run.data.params.items() if name.startswith("quantizer.start")}
    assert found == {
        "quantizer.start": "short",
        "quantizer.start.method": "brecq",
        "quantizer.start.version": "3",
        "quantizer.start.weight_iterations": "100",
    }


def test_curves_keep_their_steps(logged):
    history = logged.client.get_metric_history(logged.done.info.run_id, "generate/loss")

    assert sorted((point.step, point.value) for point in history) == [(0, 3.0), (10, 1.0)]


def test_tags_say_what_the_row_is(logged):
    tags = {name.removeprefix("zsqbench."): value for name, value in logged.done.data.tags.items()}

    assert tags["cell"] == row().cell
    assert tags["definition"] == "some hash"
    assert json.loads(tags["keys"]) == row().keys
    assert (tags["data_free"], tags["random_weights"]) == ("true", "false")


def test_the_run_lasts_as_long_as_its_steps(logged):
    assert logged.done.info.end_time - logged.done.info.start_time == 3000


def test_the_calibration_set_is_a_dataset_input(logged):
    (given,) = logged.done.inputs.dataset_inputs

    assert (given.dataset.name, given.dataset.digest) == ("zeroq", GENERATE[:36])
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "calibration")]


def test_diagnostics_and_their_pictures_are_artifacts(logged):
    assert artifacts(logged, logged.done) == {"diagnostics.json", "diagnostics.png", "images.png"}


def test_a_failed_cell_has_its_reason_and_traceback(logged, tmp_path):
    path = logged.client.download_artifacts(logged.failed.info.run_id, "traceback.txt", str(tmp_path))

    assert logged.failed.info.status == "FAILED"
    assert logged.failed.data.tags["zsqbench.reason"] == "quantize: out of memory"
    assert Path(path).read_text() == "Traceback: here"


def test_an_excluded_cell_has_its_reason_and_nothing_from_the_store(logged):
    assert logged.excluded.data.tags["zsqbench.reason"] == "shown once"
    assert artifacts(logged, logged.excluded) == set()
    assert not logged.excluded.inputs.dataset_inputs


def test_sync_finds_nothing_missing_after_a_run(logged, store):
    assert sync([row(), row("interrupted cell", status="interrupted")], "demo", store) == 0


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


def test_a_run_that_was_never_ended_does_not_count_as_logged(store):
    experiment = Experiment.open("half", store)
    experiment.client.create_run(experiment.id, tags={"zsqbench.row": identity(row())})

    assert sync([row()], "half", store) == 1


def test_all_pages_of_runs_are_read():
    class Page(list):
        def __init__(self, name, following):
            super().__init__([SimpleNamespace(data=SimpleNamespace(tags={"zsqbench.row": name}))])
            self.token = following

    pages = {None: Page("a", "more"), "more": Page("b", None)}
    client = SimpleNamespace(search_runs=lambda *_, page_token, **__: pages[page_token])

    assert Experiment(client, "1", "demo", None).identities() == {"a", "b"}


def test_a_row_is_another_one_when_its_status_or_its_artifacts_change():
    rows = [row(), row(seconds={}), row(status="failed"), row(keys={}), row(definition="other")]

    assert len({identity(result) for result in rows}) == 4


def test_mlflow_limits_are_kept(store):
    options = {f"option {number} (odd)": "x" * 7000 for number in range(120)}
    methods = {"generator": {"method": "zeroq", "options": options | {"empty": {}}}}
    metrics = {"../odd//name%": 1.0, "n" * 300: 2.0, "nan": float("nan")}

    invoke(store, [row(methods=methods, metrics=metrics, reason="r" * 9000)], name="limits")

    (run,) = runs(store, "limits")[1]
    assert len(run.data.params["generator.option 0 _odd_"]) == 6000
    assert run.data.params["generator.empty"] == "{}"
    assert len(run.data.params) == 129
    assert run.data.metrics["_/odd/_/name_"] == 1.0
    assert run.data.metrics["n" * 250] == 2.0


def test_long_curves_are_thinned_and_keep_the_last_value_of_a_step(tmp_path):
    store = Store(tmp_path)
    curve = [[step, float(step)] for step in range(2000)]
    fill(store, curves=json.dumps({"loss": [*curve, [1999, 7.0]]}))

    points = [point for point in tracking.Details.read(row(), store).points if point.name == "generate/loss"]

    assert (len(points), points[0].step, points[-1].step, points[-1].value) == (CURVE_POINTS, 0, 1999, 7.0)


def test_a_damaged_artifact_is_named_and_costs_nothing_else(tmp_path, store):
    damaged = Store(tmp_path)
    fill(damaged, curves="{")
    (damaged.folder("diagnose", diagnose_key(GENERATE, "d" * 64)) / "images.png").write_bytes(b"damaged")
    experiment = Experiment.open("damaged", store)

    tracking.Invocation(replace(experiment, store=damaged), "parent").log(row())

    (run,) = runs(store, "damaged")[1]
    assert run.data.metrics["quantize/mse"] == 0.5
    assert re.fullmatch(
        r"generate/curves.json: JSONDecodeError: .*; its diagnostics cannot be read: .*images.png has changed.*",
        run.data.tags["zsqbench.unreadable"],
    )


def test_artifacts_that_are_gone_are_no_reason_not_to_log(tmp_path):
    assert tracking.Details.read(row(), Store(tmp_path)) == tracking.Details()


def test_diagnostics_that_come_after_their_cells_are_logged_to_them(tmp_path, store):
    late = Store(tmp_path)
    fill(late, diagnosed=False)
    experiment = replace(Experiment.open("late", store), store=late)
    invocation = experiment.start("run")
    invocation.log(row())
    (before,) = runs(store, "late")[1]
    fill_diagnosis(late)

    invocation.log_diagnostics(GENERATE)
    invocation.log_diagnostics(GENERATE)

    (after,) = runs(store, "late")[1]
    assert ("calibration/bn_gap" in before.data.metrics, after.data.metrics["calibration/bn_gap"]) == (False, 0.25)
    files = {file.path for file in experiment.client.list_artifacts(after.info.run_id)}
    assert files == {"diagnostics.json", "diagnostics.png", "images.png"}


def test_the_tracker_hands_on_what_was_diagnosed_in_a_run(tmp_path, store, monkeypatch):
    late = Store(tmp_path)
    fill(late, diagnosed=False)
    monkeypatch.setattr(tracking, "tracking_uri", lambda _: f"sqlite:///{store.home / 'mlflow.db'}")
    tracker = Tracker()
    tracker.suite_started(SimpleNamespace(name="handed on"), SimpleNamespace(store=late))
    tracker.cell_finished(row(), cached=False)
    steps = [SimpleNamespace(kind=kind, needs=[SimpleNamespace(key=GENERATE)]) for kind in ("quantize", "diagnose")]
    fill_diagnosis(late)
    for step in steps:
        tracker.step_finished(step, SimpleNamespace(status="done"))
    tracker.suite_finished([row()], None)

    (logged,) = runs(store, "handed on")[1]
    assert logged.data.metrics["calibration/difficulty"] == 0.5
