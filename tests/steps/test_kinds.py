"""A kind of step is one class: what follows is all that has to be said of one, and it is found everywhere."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from faults import rewrite_manifest
from tracked import runs

import zsqbench
from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.reports.mlflow.database import DEFAULTS
from zsqbench.steps import KINDS, Job, Shown, Tracked
from zsqbench.steps.generate import Generate
from zsqbench.store import Store


class Toy(Job):
    """Reads the calibration set; leaves its mean, a curve of the means of images, and a text."""

    kind: ClassVar[str] = "toy"
    final: ClassVar[bool] = True

    @classmethod
    def plan(cls, cell):
        images = cell.steps[Generate.kind]
        return cell.step(cls, f"of {images.label}", ("version 1",), needs=(images,))

    def run(self, session, reporter):
        images = Generate.images(session.store, self.needs[Generate.kind]).images
        for place, image in enumerate(images):
            reporter.log("mean", image.mean(), place)
        mean = images.mean().item()
        session.write(self, reporter, {"mean": mean}, lambda folder: (folder / "toy.txt").write_text("a toy"))

    @classmethod
    def row(cls, store, keys):
        return {"metrics": {"toy": store.read(cls.kind, keys[cls.kind]).content["mean"]}}

    @classmethod
    def show(cls, store, row):
        found = store.read(cls.kind, row.keys[cls.kind])
        return Shown("a_toy", found.content, f"the toy has a mean of {found.content['mean']:.3f}")

    @classmethod
    def track(cls, store, row):
        found = store.read(cls.kind, row.keys[cls.kind])
        return Tracked({"a_toy/mean": found.content["mean"]}, [found.folder / "toy.txt"], {"toy.json": found.content})


@pytest.fixture
def toy(bench, monkeypatch):
    """A bench with one more kind of step, and two cells that share one such step."""
    monkeypatch.setitem(KINDS, "toy", Toy)
    bench.matrix("quantizer: [toyq, unseeded]")
    return bench


def test_a_plan_tells_its_steps_and_which_cells_need_them(toy):
    text = toy.zsqbench("plan", toy.file, "--no-plugin", "mlflow", *toy.places()).out.splitlines()
    plan = toy.plan()
    (step,) = toy.planned("toy").values()
    (images,) = toy.planned("generate").values()
    assert "  toy       1 to do" in text
    assert "8 steps, shared by cells (without sharing: 12):" in text
    assert (step["label"], step["needs"]) == ("toy of generate a toy seed 0", [images["key"]])
    assert [cell["steps"]["toy"] for cell in plan["cells"]] == [step["key"]] * 2


def test_a_run_makes_it_once_and_rows_tell_of_it(toy):
    said = toy.run()
    found = toy.artifact("toy")
    assert (said.code, "] toy of generate a toy seed 0: " in said.err) == (0, True), said.err
    for row in toy.rows().values():
        assert (row["keys"]["toy"], row["metrics"]["toy"]) == (found.key, found.content["mean"])
        assert {"toy"} <= row["seconds"].keys() & row["peak_memory"].keys()
    assert found.manifest["files"].keys() == {"toy.txt"}
    assert [step for step, _ in found.curves["mean"]] == [0, 1, 2, 3]
    toy.calls()
    assert (toy.run().code, toy.calls()) == (0, [])


def test_a_cell_is_not_done_without_it(toy, monkeypatch):
    def breaks(self, session, reporter):
        raise ZSQBenchError("the toy is broken")

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "run", breaks)
        said = toy.run()
    rows = list(toy.rows().values())
    assert [said.code, *((row["status"], row["reason"]) for row in rows)] == [
        1,
        *[("failed", "toy: the toy is broken")] * 2,
    ]
    assert (toy.run().code, list(toy.statuses().values())) == (0, ["done"] * 2)


def test_show_tells_what_it_left(toy):
    toy.run()
    mean = toy.artifact("toy").content["mean"]
    said = toy.zsqbench("show", toy.file, "toyq", *toy.places())
    assert f"\nthe toy has a mean of {mean:.3f}\n" in said.out
    shown = json.loads(toy.zsqbench("show", toy.file, "toyq", "--format", "json", *toy.places()).out)
    assert shown["a_toy"] == {"mean": mean}


def test_the_cache_lists_it_verifies_it_and_removes_it_with_the_last_row(toy):
    toy.run()
    listed = toy.zsqbench("cache", "ls", "--home", toy.home).out.splitlines()
    found = toy.artifact("toy")
    (line,) = [line for line in listed if line.startswith("toy ")]
    assert (found.key[:12] in line, line.split("MB  ")[1]) == (True, "toy of generate a toy seed 0")
    assert "store/toy/" not in toy.zsqbench("cache", "gc", *toy.places()).out
    toy.matrix("seed: 1")
    toy.run()
    assert f"store/toy/{found.key} (no row refers to it)" in toy.zsqbench("cache", "gc", "--yes", *toy.places()).out
    assert len(toy.artifacts("toy")) == 1


@pytest.mark.slow("it imports mlflow, and runs a suite")
def test_mlflow_has_its_numbers_its_files_and_its_curve(toy, monkeypatch):
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # on a busy machine its import alone takes long
    monkeypatch.setattr("zsqbench.reports.mlflow.tracking.PATIENCE", 100.0)
    toy.matrix("")
    said = toy.zsqbench("run", toy.file, "--workers", 0, *toy.places())
    assert (said.code, "MLflow" in said.err) == (0, False), said.err
    ((parent,), (logged,)) = runs(Store(toy.home), "toysuite")
    found = toy.artifact("toy")
    metrics = logged.data.metrics
    assert (metrics["a_toy/mean"], metrics["toy"]) == (found.content["mean"],) * 2
    assert metrics["toy/mean"] == pytest.approx(found.curves["mean"][-1][1])
    assert parent.data.metrics == {"cells.done": 1.0}
    folder = toy.home / "mlartifacts" / logged.info.run_id / "artifacts"
    assert ((folder / "toy.txt").read_text(), json.loads((folder / "toy.json").read_text())) == (
        "a toy",
        found.content,
    )


class Background(Toy):
    """The same for people alone; it fails."""

    final: ClassVar[bool] = False
    background: ClassVar[bool] = True

    def run(self, session, reporter):
        raise ValueError("nobody\ncares")


def test_a_background_step_that_fails_blocks_nothing_and_its_reason_is_told(toy, monkeypatch):
    monkeypatch.setitem(KINDS, "toy", Background)
    said = toy.run()
    (step,) = toy.planned("toy").values()
    assert (said.code, list(toy.statuses().values())) == (0, ["done"] * 2)
    warning = f"warning: {step['label']} failed: ValueError: nobody cares; results do not depend on it"
    assert warning in said.err.splitlines()
    assert [line.split("] ")[1].split(" ")[0] for line in said.err.splitlines() if line.startswith("[")][-1] == "toy"
    assert "ValueError: nobody\ncares" in Store(toy.home).failures(step["key"])[0]
    assert all("toy" not in row["keys"] for row in toy.rows().values())
    assert [cell["background"]["toy"] for cell in toy.plan()["cells"]] == [step["key"]] * 2


def is_of_charts(path, name):
    """True for a key that Vega-Lite has, too."""
    return "site" in path.parts and name == "resolve"


def names_of_kinds(source):
    """String literals that are names of kinds, but for functions that are exported and packages that are needed."""
    tree = ast.parse(source)
    exported = {
        id(node)
        for assignment in ast.walk(tree)
        if isinstance(assignment, ast.Assign) and getattr(assignment.targets[0], "id", "") in ("__all__", "NEEDED")
        for node in ast.walk(assignment.value)
    }
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in exported]
    return [node.value for node in literals if node.value in KINDS]


def test_kinds_are_named_in_their_room_and_nowhere_else():
    root = Path(zsqbench.__file__).parent
    assert names_of_kinds("kind = 'resolve'\n__all__ = ['quantize']\n") == ["resolve"]
    assert "oracle" in names_of_kinds((root / "steps" / "oracle.py").read_text())
    found = {
        os.fspath(path.relative_to(root)): names
        for path in sorted(root.rglob("*.py"))
        if "steps" not in path.relative_to(root).parts
        and (names := [name for name in names_of_kinds(path.read_text()) if not is_of_charts(path, name)])
    }
    assert found == {}


SHAPES = [[], {"metrics": ["x"], "best": ["x"], "tensors": ["x"], "set": ["x"]}]


@pytest.mark.parametrize("content", SHAPES)
def test_an_artifact_of_another_shape_is_damage_and_no_bug(bench, content):
    bench.matrix("quantizer: keeper")
    assert bench.run().code == 0
    plan, store = zsqbench.plan(bench.file, home=bench.home, results=bench.results), Store(bench.home)
    (keys,) = [planned.keys for planned in plan.cells]
    for folder in (bench.home / "store").glob("*/*"):
        rewrite_manifest(folder, content=content, environment=[], job=[], curves=[], label=[])
    for kind in ("baseline", "evaluate", "oracle"):
        with pytest.raises(CorruptArtifactError):
            KINDS[kind].row(store, keys)
    with pytest.raises(CorruptArtifactError):
        zsqbench.load_student(bench.file, "keeper", home=bench.home, results=bench.results)
    shown = bench.zsqbench("show", bench.file, "keeper", *bench.places())
    assert (shown.code, len(shown.err.splitlines())) == (2, 1), shown.err
    listed = bench.zsqbench("cache", "ls", "--home", bench.home)
    assert (listed.code, listed.out.count("label in manifest.json is list, expected str")) == (0, 8), listed
    assert (
        KINDS["diagnose"].track(store, next(iter(plan.rows.values()))).unreadable.startswith("its diagnostics cannot")
    )


def test_diagnostics_of_another_shape_are_shown_as_damaged(bench):
    bench.matrix("")
    bench.run()
    found = bench.artifact("diagnose")
    rewrite_manifest(found.folder, content=found.content | {"set": ["x"]})
    said = bench.zsqbench("show", bench.file, "toyq", *bench.places())
    assert (said.code, "its diagnostics cannot be read: artifact" in said.out) == (0, True), said.err


def test_steps_are_known_without_numpy_and_scipy():
    """A plan, or a run in which all is there, does not wait for them."""
    code = "import sys, zsqbench.steps; sys.exit(any(name in sys.modules for name in ('numpy', 'scipy', 'torch')))"
    subprocess.run([sys.executable, "-c", code], check=True)
