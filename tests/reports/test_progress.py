import io

import pytest

from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.methods import Settings
from zsqbench.reports import progress as module
from zsqbench.reports.progress import ProgressDisplay
from zsqbench.reports.results import Result
from zsqbench.steps import KINDS, Outcome, Progress, Step
from zsqbench.store import Store
from zsqbench.suite import Cell, Suite

CELL = Cell("t", "m", "g", "q", "hw/w4a4", 0, Settings())
STEPS = {kind: Step(KINDS[kind], f"key-{kind}", f"{kind} m", (), CELL) for kind in ("baseline", "evaluate")}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plan(tmp_path):
    suite = Suite("s", "", tmp_path, None, {}, {}, {}, {}, {}, [CELL], [CELL])
    cells = [PlannedCell(CELL, STEPS)]
    return suite, Plan(suite, Store(tmp_path), cells, {step.key: step for step in STEPS.values()}, set())


def row(**changes):
    values = {
        "suite": "s",
        "cell": "c",
        "definition": "d",
        "task": "t",
        "model": "m",
        "generator": "g",
        "quantizer": "q",
    }
    values |= {"scheme": "hw/w4a4", "seed": 0, "status": "done", "metric": "top1"}
    return Result(**values | {"metrics": {"top1": 50.0}, "float_metrics": {"top1": 60.0}} | changes)


@pytest.fixture
def display(tmp_path, capsys):
    display = ProgressDisplay()
    display.suite_started(*plan(tmp_path))
    assert capsys.readouterr() == ("", "s: 1 cells, 2 steps to do\n")
    return display


def test_a_finished_step_is_a_line_with_its_seconds(display, capsys):
    display.step_finished(STEPS["baseline"], Outcome("done", 1.26))
    assert capsys.readouterr() == ("", "[1/2] baseline m: 1.3 s\n")


def test_a_failed_step_is_a_line_with_its_reason(display, capsys):
    display.step_finished(STEPS["baseline"], Outcome("failed", error="ValueError: no"))
    assert capsys.readouterr().err == "[1/2] baseline m: failed: ValueError: no\n"


def test_loading_a_model_comes_before_the_plan_and_does_not_count(tmp_path, capsys):
    display = ProgressDisplay()
    for _ in range(2):  # the second time, a run came before
        display.step_finished(Step(KINDS["resolve"], "k", "resolve m", (), CELL), Outcome("done", 2.0))
        assert capsys.readouterr().err == "resolve m: 2.0 s\n"
        display.suite_started(*plan(tmp_path))
        display.step_finished(STEPS["baseline"], Outcome("done", 1.0))
        display.suite_finished()
        assert capsys.readouterr().err.splitlines()[-1] == "[1/2] baseline m: 1.0 s"


def test_a_cell_is_a_line_with_its_value(display, capsys):
    display.cell_finished(row(), cached=False)
    assert capsys.readouterr().err == "c: 50.00 (float 60.00)\n"


def test_a_failed_cell_is_a_line_with_its_reason(display, capsys):
    display.cell_finished(row(status="failed", reason="generate: no", metrics={}), cached=False)
    assert capsys.readouterr().err == "c: failed: generate: no\n"


def test_a_cell_that_was_there_is_counted_at_the_end(display, capsys):
    display.cell_finished(row(), cached=True)
    display.suite_finished()
    assert capsys.readouterr().err == "1 cells were there already\n"


def test_a_running_step_is_a_line_now_and_then(display, capsys, monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 5.0, 10.5, 10.5, 10.5, 11.0, 11.0, 11.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    for done in range(3):
        display.step_progress(STEPS["baseline"], Progress(done, 9, {"loss": 0.123456}))
    assert capsys.readouterr().err == "  baseline m: 2 of 9  loss 0.1235\n"


def test_a_terminal_shows_bars_and_is_left_as_it_was(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    display = ProgressDisplay()
    display.suite_started(*plan(tmp_path))
    display.step_progress(STEPS["baseline"], Progress(3, 9, {"loss": 0.5}))
    display.step_finished(STEPS["baseline"], Outcome("done", 1.0))
    display.step_finished(STEPS["evaluate"], Outcome("failed", error="no [bold] luck"))
    display.cell_finished(row(), cached=False)
    display.suite_finished()
    text = terminal.getvalue()
    assert [part in text for part in ("evaluate m: failed: no [bold] luck", "50.00", "\x1b[?25h")] == [True] * 3


def test_a_display_serves_one_run_after_another(display, tmp_path, capsys):
    display.step_finished(STEPS["baseline"], Outcome("done", 1.0))
    display.suite_started(*plan(tmp_path))
    display.step_finished(STEPS["baseline"], Outcome("done", 1.0))
    assert "[1/2] baseline m: 1.0 s" in capsys.readouterr().err.splitlines()[-1]
