"""A method may spoil its process: no other cell is touched, and no run waits for it for ever."""

import misbehaving
import psutil
import pytest
import yaml
from runs import Started

import zsqbench

COMPARED = ("metrics", "float_metrics", "correct", "tensors", "keys")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run cells of a shipped quantizer and these generators, one after the other in one worker."""
    folder = tmp_path_factory.mktemp("reliability")

    def run(name, generators, **options):
        suite = {
            "name": name,
            "plugins": [misbehaving.__file__],
            "tasks": {"digits": {"method": "classification", "data": "digits"}},
            "generators": {"short": {"method": "noise", "images": 16}},
            "matrix": [
                {"task": "digits", "model": "resnet20", "generator": generator, "quantizer": "rtn", "scheme": "hw/w4a4"}
                for generator in [*generators, "short"]
            ],
        }
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(suite))
        places = {"home": folder / name, "results": folder, "without": ["mlflow", "progress"]}
        rows = {row.generator: row for row in zsqbench.run(file, workers=1, **places, **options).results}
        return rows, {field: getattr(rows["short"], field) for field in COMPARED}

    return run


@pytest.fixture(scope="module")
def alone(run):
    """The row of a shipped method that runs alone."""
    return run("alone", [])[1]


def names(faults):
    return [fault.__name__ for fault in faults]


def test_a_step_that_ends_well_changes_no_other_step(run, alone):
    rows, beside = run("changes", names(misbehaving.CHANGES))
    assert [row.status for row in rows.values()] == ["done"] * len(rows)
    assert beside == alone


@pytest.mark.slow("it runs a suite in a worker, to check the test above")
def test_the_changes_are_real(run, alone):
    """Else the test above would hold for a plugin that does nothing."""
    _, beside = run("shared", ["patches_argmax"], isolation="worker")
    assert beside["metrics"] != alone["metrics"]
    assert beside["keys"] == alone["keys"]


def test_a_run_ends_whatever_its_steps_leave_behind(run, alone):
    rows, beside = run("left", [*names(misbehaving.LEFT_BEHIND), "overflows_the_stack"])
    assert [row.status for row in rows.values()] == ["done"] * 4 + ["failed", "done"]
    assert "signal 11 (SIGSEGV)" in rows["overflows_the_stack"].reason
    assert beside == alone
    started = f"time.sleep({misbehaving.FOR_EVER})"
    assert not [line for line in map(command_of, psutil.process_iter()) if line.endswith(started)]


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


PACED = """
class Paced(Toy):
    name = "paced"
    def generate(self, teacher, ctx):
        set_ = super().generate(teacher, ctx)
        time.sleep(0.3)
        return set_
"""


def noted(bench):
    """The number of calls of the toy plugin."""
    file = bench.folder / "calls.txt"
    return file.read_text().count("\n") if file.exists() else 0


def made(path):
    """The identity of a file, and the time when it was written."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next_with_equal_rows(bench):
    finished = {}
    for calls in (3, 8):
        run = Started(bench, "generator: paced, seed: [0, 1, 2, 3]", more=PACED)
        run.wait_until(lambda calls=calls: noted(bench) >= calls)
        run.process.kill()
        run.end()
        found = {path: made(path) for path in bench.home.glob("store/*/*/manifest.json")}
        assert found.keys() >= finished.keys()
        finished = found
    assert bench.run().code == 0
    killed = [{field: row[field] for field in COMPARED} for row in bench.rows().values()]
    assert {path: made(path) for path in finished} == finished  # nothing was done again
    assert bench.run_anew("undisturbed").code == 0
    assert [{field: row[field] for field in COMPARED} for row in bench.rows().values()] == killed
