"""A row with its artifacts, and the runs of MLflow that are made of it, for tests of several files."""

from types import SimpleNamespace

import numpy as np
import pluggy
from safetensors.numpy import save_file

from zsqbench import hookspecs
from zsqbench.reports.mlflow.runs import Experiment
from zsqbench.reports.mlflow.tracking import Tracker
from zsqbench.reports.results import Result

GENERATE, QUANTIZE = "a" * 64, "b" * 64
DIAGNOSE = GENERATE[:32] + "d" * 32
SILENT = {"curves": {}, "notes": []}


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
        for name in ("diagnostics.png", "images.png"):
            (folder / name).write_bytes(b"blank")

    job = {"task": {"method": "classification", "options": {}}}
    store.write("diagnose", DIAGNOSE, {"job": job, "content": {"version": "1", **DIAGNOSTICS}, **SILENT}, diagnosed)


def fill(store, diagnosed=True, loss=((0, 3.0), (10, 1.0))):
    """The artifacts of the steps of `row`."""

    def generated(folder):
        images = np.linspace(-1, 1, 10 * 3 * 8 * 8, dtype=np.float32).reshape(10, 3, 8, 8)
        save_file({"images": images}, folder / "calibration.safetensors")

    store.write("generate", GENERATE, {"content": {"images": 10}, "curves": {"loss": loss}, "notes": []}, generated)
    if diagnosed:
        fill_diagnosis(store)
    store.write("quantize", QUANTIZE, {"content": {}, "curves": {"mse": [(0, 0.5)]}, "notes": []})


def invoke(store, new=(), cached=(), name="demo", table=None, report=None):
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
    manager.hook.suite_finished(suite=suite, results=[*cached, *new], table=table, report=report)


def runs(store, name="demo"):
    """Parent runs, and the runs of cells, oldest first."""
    experiment = Experiment.open(name, store)
    found = experiment.client.search_runs([experiment.id], order_by=["attributes.start_time"])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return [run for run in found if run not in children], children
