import importlib.metadata
import subprocess
import sys

import pytest

from zsqbench.execution.run import Run


def test_zero_when_all_cells_are_done(bench):
    assert bench.run().code == 0


def test_zero_when_cells_are_excluded_or_impossible_as_the_suite_says(bench):
    bench.matrix("scheme: [hw/w4a4, float], seed: [0, 1]", head="exclude: [{seed: 1, because: once is enough}]")
    assert bench.run().code == 0


def test_one_when_a_cell_failed(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise ValueError\n")
    bench.matrix("generator: [toy, bad]")
    assert bench.run().code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "zzz"],
        ["runn", "smoke"],
        ["run", "smoke", "--workers", "-1"],
        ["run", "smoke", "--workers", "many"],
        ["plan", "smoke", "--format", "yaml"],
        ["plan", "smoke", "--no-plugin", "zzz"],
        ["plan", "smoke", "--plugin", "zzz.py"],
        ["plan", "smoke", "--set", "zzz"],
        ["plan", "smoke", "-k", "and"],
        ["leaderboard", "zzz"],
        ["show", "zzz", "x"],
        ["plugins", "list", "zzz"],
        ["plugins", "check", "zzz"],
        ["plugins", "check", "zzz.py"],
        ["plugins", "check", "pool"],
        ["plugins", "check", "noise", "--set", "zzz"],
        ["plugins", "check", "noise", "--set", "imags=4"],
        ["plugins", "check", "noise", "--set", "images=0"],
        ["plugins", "check", "classification"],
        ["plugins", "new", "generator", "noise"],
        ["plugins", "new", "generator", "Mine"],
        ["plugins", "new", "engine", "mine"],
        ["run", "smoke", "--device", "banana", "--workers", "0"],
    ],
)
def test_two_for_a_mistake_of_usage(bench, monkeypatch, arguments):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench(*arguments)
    assert (said.code, said.out, "Traceback" in said.err) == (2, "", False), said.err


@pytest.mark.parametrize("raised", [RuntimeError("broken"), KeyError("x"), AssertionError()])
def test_three_for_a_bug_of_ours_with_its_traceback(bench, monkeypatch, raised):
    def fail(*_):
        raise raised

    monkeypatch.setattr(Run, "execute", fail)
    said = bench.run()
    expected = "this is a bug of zsqbench; please report it with the lines above"
    assert (3, expected, True) == (said.code, said.err.splitlines()[-1], "Traceback" in said.err)


def test_four_when_a_plugin_that_the_suite_needs_cannot_load(bench, broken):
    bench.matrix("generator: theirs")
    said = bench.run("--plugin", broken)
    expected = f"plugin 'broken' ({broken}): RuntimeError: no luck"
    assert (said.code, len(said.err.splitlines()), expected in said.err) == (4, 1, True), said.err


def test_a_broken_plugin_that_the_suite_does_not_need_is_one_warning(bench, broken, caplog):
    said = bench.run("--plugin", broken)
    expected = f"plugin broken ({broken}) did not load: RuntimeError: no luck"
    assert (said.code, caplog.messages) == (0, [expected]), said.err
    assert expected not in said.err


@pytest.mark.parametrize("command", ["leaderboard", "show"])
def test_a_broken_plugin_does_not_stop_a_look_at_results(ran, command):
    ran.write("toy.py", "raise RuntimeError('no luck')")
    cell = ["w4a4:1"] if command == "show" else []
    assert ran.zsqbench(command, ran.file, *cell, "--results", ran.results).code == 0


def test_five_when_nothing_is_selected(bench):
    said = bench.run("-k", "zzz")
    assert (said.code, said.err) == (5, "error: no cell of suite toysuite can run: none is selected\n")


def test_five_when_everything_is_excluded(bench):
    bench.matrix("", head="exclude: [{because: why not}]")
    assert bench.run().code == 5


def test_130_when_interrupted(bench, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zsqbench.execution.run.find_data", interrupt)
    said = bench.run()
    assert (said.code, said.err.splitlines()[-1]) == (130, "interrupted")


def test_help_names_the_exit_codes(bench):
    said = bench.zsqbench("--help")
    assert (said.code, "130 interrupted" in " ".join(said.out.split())) == (0, True)


def test_the_version_is_told_in_a_checkout_that_is_not_installed(bench, monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    said = bench.zsqbench("--version")
    assert (said.code, bool(said.out.strip())) == (0, True), said.err


LEAVES = {
    "a thread": "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
    "a handler at exit": "import atexit, time; atexit.register(time.sleep, 600)",
}


@pytest.mark.parametrize("what", LEAVES)
def test_a_command_ends_whatever_a_plugin_leaves_behind(bench, what):
    plugin = bench.write("leaves.py", LEAVES[what])
    code = "import zsqbench.cli; zsqbench.cli.PATIENCE = 0.2; zsqbench.cli.run_command()"
    command = [sys.executable, "-c", code, "plan", bench.file, "--plugin", plugin, *bench.places()]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[-1].startswith("warning: a plugin left a thread or a handler at exit")
