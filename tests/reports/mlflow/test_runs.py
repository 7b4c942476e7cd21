import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import flip
from tracked import DIAGNOSE, GENERATE, QUANTIZE, fill, fill_diagnosis, invoke, row, runs

from zsqbench.reports.mlflow import runs as mlflow_runs
from zsqbench.reports.mlflow.runs import (
    CURVE_POINTS,
    BackgroundStep,
    Details,
    Ending,
    Experiment,
    Invocation,
    _batches,
    identity,
)
from zsqbench.reports.mlflow.tables import Tables
from zsqbench.reports.mlflow.tracking import sync
from zsqbench.reports.mlflow.turns import Turns
from zsqbench.store import Store


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
    report = store.home / "demo.report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text("pages")
    invoke(store, new, table=str(table), report=str(report))
    (parent,), children = runs(store)
    client = Experiment.open("demo", store).client
    by_status = {run.data.tags["zsqbench.status"]: run for run in children}
    return SimpleNamespace(client=client, parent=parent, children=children, **by_status)


def artifacts(logged, run):
    return {file.path for file in logged.client.list_artifacts(run.info.run_id)}


def test_one_parent_run_holds_a_run_for_each_new_cell(logged):
    assert {run.info.run_name for run in logged.children} == {row().cell, "failed cell", "excluded cell"}
    assert len(logged.children) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in logged.children} == {logged.parent.info.run_id}


def test_the_parent_run_says_which_suite_and_version_it_is_and_how_cells_ended(logged):
    assert logged.parent.data.tags["zsqbench.suite"] == "demo"
    assert "zsqbench.version" in logged.parent.data.tags
    assert logged.parent.data.metrics == {
        "cells.done": 1,
        "cells.failed": 1,
        "cells.excluded": 1,
        "cells.interrupted": 1,
    }


def test_the_table_and_the_report_are_artifacts_of_the_parent_run(logged):
    assert artifacts(logged, logged.parent) == {"demo.md", "report"}
    assert [file.path for file in logged.client.list_artifacts(logged.parent.info.run_id, "report")] == [
        "report/index.html"
    ]


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
    other.write("oracle", "c" * 64, {"content": {}, "curves": {"top1": [(4, 90.0)]}, "notes": []})
    oracle = {"epoch": 8, "metrics": {"top1": 92.5}, "of": 3}

    Invocation(replace(Experiment.open("oracle", store), store=other), "run").log(
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


def test_a_run_that_was_never_ended_does_not_count_as_logged(store):
    experiment = Experiment.open("half", store)
    experiment.client.create_run(experiment.id, tags={"zsqbench.row": identity(row())})

    assert sync([row()], "half", store) == 1


def test_all_pages_of_runs_are_read(store, monkeypatch):
    class Page(list):
        def __init__(self, name, following):
            tags, info = {"zsqbench.row": name}, SimpleNamespace(run_id="1", status="FINISHED")
            super().__init__([SimpleNamespace(data=SimpleNamespace(tags=tags), info=info)])
            self.token = following

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")
    pages = {None: Page("a", "more"), "more": Page("b", None)}
    client = SimpleNamespace(search_runs=lambda *_, page_token, **__: pages[page_token])

    assert Experiment(client, "1", "demo", store, None).identities() == {"a", "b"}


def test_mlflow_answers_as_its_database_does(store, monkeypatch):
    invoke(store, [row("one"), row("two")], name="asked")
    experiment = Experiment.open("asked", store)
    experiment.client.create_run(experiment.id, tags={"zsqbench.row": "begun"})
    asked = [experiment.logged(), experiment.logged([identity(row("two"))])]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file:that only MLflow reads")
    answers = [experiment.logged(), experiment.logged([identity(row("two"))])]

    assert [len(found) for found in asked] == [3, 1]
    assert [set(found) for found in answers] == [set(found) for found in asked]


def test_the_values_of_a_cell_are_logged_in_one_call_where_the_limits_allow_it(store, monkeypatch):
    experiment = replace(Experiment.open("one call", store), tables=None)
    calls = []
    log_batch = experiment.client.log_batch
    monkeypatch.setattr(experiment.client, "log_batch", lambda *a, **k: (calls.append(k), log_batch(*a, **k)))

    Invocation(experiment, "run").log(row())

    (call,) = calls
    assert {"top1", "generate/loss", "calibration/difficulty"} <= {metric.key for metric in call["metrics"]}
    assert "quantizer.method" in {param.key for param in call["params"]}


def told(client, run):
    """All that MLflow tells of a run, without what differs from one run to the next."""
    info, data = run.info, run.data
    files = {
        file.path: Path(client.download_artifacts(info.run_id, file.path)).read_bytes()
        for file in client.list_artifacts(info.run_id)
    }
    metrics = {name: client.get_metric_history(info.run_id, name) for name in data.metrics}
    return {
        "info": (info.run_name, info.status, info.user_id, info.lifecycle_stage, info.end_time - info.start_time),
        "place": info.artifact_uri.replace(info.run_id, "ID"),
        "tags": {name: value for name, value in data.tags.items() if name != "mlflow.parentRunId"},
        "params": data.params,
        "metrics": data.metrics,
        "history": {name: [(point.step, point.value) for point in points] for name, points in metrics.items()},
        "inputs": [
            (read.dataset.to_dictionary(), [(tag.key, tag.value) for tag in read.tags])
            for read in run.inputs.dataset_inputs
        ],
        "files": files,
    }


def test_a_database_holds_what_calls_of_the_client_make(tmp_path, store):
    other = Store(tmp_path)
    fill(other, loss=((0, 3.0), (10, 1.0), (20, float("nan")), (30, float("inf"))))
    rows = [row("a"), row("b", status="failed", metrics={}, reason="no", traceback="Traceback: here"), row("c", seed=1)]
    rows = [rows[0], rows[1], rows[2].model_copy(update={"metrics": {"top1": 1e300, "top 5%": 2.0}})]
    experiment = replace(Experiment.open("ways", store), store=other)
    client, ways = experiment.client, []
    for tables in (experiment.tables, replace(experiment.tables, folder=None), None):
        invocation = Invocation(replace(experiment, tables=tables), "run")
        assert [result.cell for result in invocation.log(*rows)] == ["a", "b", "c"]
        invocation.finish(Ending(rows))
        found = experiment.client.search_runs(
            [experiment.id], "tags.`zsqbench.cell` != ''", order_by=["tags.`zsqbench.cell`"]
        )
        ways.append([told(experiment.client, experiment.client.get_run(run.info.run_id)) for run in found])
        for run in found:
            client.delete_run(run.info.run_id)
    assert repr(ways[0]) == repr(ways[1]) == repr(ways[2])  # NaN is not equal to itself
    assert len(ways[0]) == 3
    assert ways[0][1]["files"]["traceback.txt"] == b"Traceback: here"


def test_copied_files_are_as_old_as_their_artifacts(logged, store):
    source = store.folder("diagnose", DIAGNOSE) / "images.png"
    copy = store.home / "mlartifacts" / logged.done.info.run_id / "artifacts" / "images.png"

    assert (copy.stat().st_mtime_ns, copy.stat().st_mode) == (source.stat().st_mtime_ns, source.stat().st_mode)


@pytest.mark.parametrize(
    ("location", "folder"), [("file:///a%20b", Path("/a b")), ("/a b", Path("/a b")), ("s3://a/b", None)]
)
def test_artifacts_on_a_disk_have_a_folder(location, folder):
    client = SimpleNamespace(
        get_experiment=lambda _: SimpleNamespace(artifact_location=location),
        _tracking_client=SimpleNamespace(store=None),
    )

    assert Tables.of(client, "1").folder == folder


@pytest.mark.parametrize(("size", "expected"), [(1, [1, 1, 1]), (300, [2, 1]), (10_000, [3])])
def test_rows_with_long_curves_are_logged_in_several_turns(tmp_path, store, monkeypatch, size, expected):
    other = Store(tmp_path)
    other.write("quantize", QUANTIZE, {"content": {}, "curves": {"mse": [(0, 0.5), (1, 0.4)]}, "notes": []})
    monkeypatch.setattr(mlflow_runs, "SIZE_PER_TURN", size)
    written = []
    write = Tables.write
    monkeypatch.setattr(Tables, "write", lambda self, runs: (written.append(len(runs)), write(self, runs))[1])
    progress = []
    experiment = Experiment.open(f"size {size}", store, Turns.of(store.home, lambda: progress.append(len(written))))

    logged = Invocation(replace(experiment, store=other), "run").log(row("one"), row("two"), row("three"))

    assert ([result.cell for result in logged], written) == (["one", "two", "three"], expected)
    assert progress == list(range(len(expected) + 1))


def test_what_rows_share_is_read_once(tmp_path, store, monkeypatch):
    other = Store(tmp_path)
    fill(other)
    read = []
    manifest = Store.manifest
    monkeypatch.setattr(Store, "manifest", lambda self, kind, key: (read.append(kind), manifest(self, kind, key))[1])

    Invocation(replace(Experiment.open("shared", store), store=other), "run").log(row("one"), row("two"))

    assert sorted(read) == ["diagnose", "generate", "quantize"]


def test_rows_that_are_held_are_not_logged_with_others(store):
    assert sync([row("one")], "held", store) == 1
    assert [
        result.cell for result in Invocation(Experiment.open("held", store), "run").log(row("one"), row("two"))
    ] == ["two"]


def test_a_logger_that_is_killed_between_two_tables_leaves_no_run(store, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(Tables, "_insert_datasets", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            sync([row("one"), row("two")], "killed", store)
    assert runs(store, "killed")[1] == []
    assert sync([row("one"), row("two")], "killed", store) == 2
    assert [run.info.status for run in runs(store, "killed")[1]] == ["FINISHED", "FINISHED"]


def test_a_call_has_at_most_a_thousand_values_and_a_hundred_of_them_params():
    sizes = [(len(params), len(metrics)) for params, metrics in _batches(list(range(150)), list(range(2500)))]

    assert sizes == [(100, 900), (50, 950), (0, 650)]


def test_the_name_of_a_run_is_cut_to_what_every_backend_takes(store):
    invoke(store, [row("c" * 300)], name="long names")

    (run,) = runs(store, "long names")[1]
    assert (run.info.run_name, run.data.tags["zsqbench.cell"]) == ("c" * 250, "c" * 300)


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
    fill(store, loss=[*((step, float(step)) for step in range(2000)), (1999, 7.0)])

    points = [point for point in Details.read(row(), store).points if point.name == "generate/loss"]

    assert (len(points), points[0].step, points[-1].step, points[-1].value) == (CURVE_POINTS, 0, 1999, 7.0)


def test_curves_of_all_steps_that_a_row_tells_of_are_logged(tmp_path):
    store = Store(tmp_path)
    keys = {
        "baseline": "1" * 64,
        "start.start": "2" * 64,
        "start": "3" * 64,
        "quantize": "4" * 64,
        "evaluate": "5" * 64,
    }
    for name, key in keys.items():
        kind = "quantize" if name.startswith("start") else name
        store.write(kind, key, {"content": {}, "curves": {"loss": [(0, 1.0), (1, float(key[0]))]}, "notes": []})

    found = {point.name: point.value for point in Details.read(row(keys=keys), store).points if point.step == 1}

    assert found == {
        "baseline/loss": 1.0,
        "start.start/loss": 2.0,
        "start/loss": 3.0,
        "quantize/loss": 4.0,
        "evaluate/loss": 5.0,
    }


def test_a_damaged_artifact_is_named_and_costs_nothing_else(tmp_path, store):
    damaged = Store(tmp_path)
    fill(damaged)
    flip(damaged.folder("generate", GENERATE) / "manifest.json")
    (damaged.folder("diagnose", DIAGNOSE) / "images.png").write_bytes(b"damaged")
    experiment = Experiment.open("damaged", store)

    Invocation(replace(experiment, store=damaged), "run").log(row())

    (run,) = runs(store, "damaged")[1]
    assert run.data.metrics["quantize/mse"] == 0.5
    assert re.fullmatch(
        r"generate: CorruptArtifactError: .*manifest.json.*; its diagnostics cannot be read: .*images.png has .*",
        run.data.tags["zsqbench.unreadable"],
    )


def test_diagnostics_that_another_run_made_are_logged_at_the_end(tmp_path, store):
    late = Store(tmp_path)
    fill(late, diagnosed=False)
    invocation = Invocation(replace(Experiment.open("of another", store), store=late), "run")
    invocation.log(row())
    fill_diagnosis(late)

    invocation.finish(Ending([row()]))

    (cell,) = runs(store, "of another")[1]
    assert cell.data.metrics["calibration/bn_gap"] == 0.25


def test_artifacts_that_are_gone_are_no_reason_not_to_log(tmp_path):
    details = Details.read(row(), Store(tmp_path))

    assert (details.points, details.unreadable, details.awaited) == ((), (), ("diagnose", "analyze"))
    assert [dataset.key for dataset in details.datasets] == [GENERATE]


def test_diagnostics_that_come_after_their_cells_are_logged_to_them(tmp_path, store):
    late = Store(tmp_path)
    fill(late, diagnosed=False)
    experiment = replace(Experiment.open("late", store), store=late)
    invocation = Invocation(experiment, "run")
    invocation.log(row())
    (before,) = runs(store, "late")[1]
    fill_diagnosis(late)

    news = BackgroundStep("diagnose", frozenset({GENERATE}))
    invocation.log_background(BackgroundStep("diagnose", frozenset({"e" * 64})))
    invocation.log_background(news)
    invocation.log_background(news)

    (after,) = runs(store, "late")[1]
    assert ("calibration/bn_gap" in before.data.metrics, after.data.metrics["calibration/bn_gap"]) == (False, 0.25)
    files = {file.path for file in experiment.client.list_artifacts(after.info.run_id)}
    assert files == {"diagnostics.json", "diagnostics.png", "images.png"}
