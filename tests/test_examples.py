"""The examples run as they stand: the package is found and keeps the contract, its suite and the notebook run."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from distributions import write_metadata

from zsqbench.execution import worker
from zsqbench.hookspecs import PROJECT

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PACKAGE = EXAMPLES / "zsqbench-example-plugin"
MODULE = "zsqbench_example_plugin"
METHODS = ("patchwork", "mean_match")

NOTEBOOK = json.loads((EXAMPLES / "compare.ipynb").read_text(encoding="utf-8"))
BRIEF = {"IMAGES": 8, "ITERATIONS": 2, "SEEDS": [0], "WORKERS": 0}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as pip installs it, but for building; no module of it is left for other tests."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = tmp_path / "site"
    write_metadata(site, project["name"], project["version"], project["entry-points"][PROJECT].items())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULE]:
        del sys.modules[name]


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("generator", "patchwork"), ("quantizer", "mean_match")])
def test_the_methods_of_the_package_are_found(kind, name, bench, installed):
    said = bench.zsqbench("plugins", "list", name)
    assert f"{kind} {name}  (version 1, zsqbench-example-plugin 0.1.0)" in said.out, said


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_the_package_pass_the_check(name, bench, installed, briefly):
    said = bench.zsqbench("plugins", "check", name)
    assert (said.code, said.out.count("FAILED  ")) == (0, 0), said


def test_the_methods_of_the_package_run_in_its_suite(bench, installed):
    short = ["matrix.0.seed=0", "generators.patchwork={images: 8, iterations: 3}"]
    options = [part for override in short for part in ("--set", override)]
    options += ["-k", "patchwork and w4a4", "--workers", "0", "--no-plugin", "mlflow"]
    said = bench.zsqbench("run", PACKAGE / "example.yaml", *bench.places(), *options)
    assert said.code == 0, said.err
    rows = re.findall(r"^\| (\w+) .*\| (\w+) +\| +\**[\d.]+ ", said.out, re.MULTILINE)
    assert rows == [("patchwork", "rtn"), ("patchwork", "mean_match")]


@pytest.mark.slow("it checks the contract on all tiny networks, in a process of its own")
@pytest.mark.timeout(600)
def test_the_tests_of_the_package_pass():
    path = os.pathsep.join([str(PACKAGE / "src"), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        command, cwd=PACKAGE, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# --- the notebook -----------------------------------------------------------------------------------------------------


def sources(kind):
    """The text of each cell of a kind, with the cell's tags."""
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def run_notebook(parameters):
    """The names that the notebook leaves.

    Its cells are plain Python, so `exec` runs them. nbclient, which runs any notebook, needs a kernel of Jupyter: it
    brings packages that no other test needs, and a process that imports torch once more.
    """
    worker._session.cache_clear()
    names: dict[str, object] = {}
    for source, tags in sources("code"):
        exec(compile(source, "compare.ipynb", "exec"), names)  # noqa: S102 - our own notebook
        if "parameters" in tags:
            assert names.keys() >= parameters.keys()
            names |= parameters
    return names


def test_the_notebook_stores_no_outputs():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)


def test_the_links_of_the_notebook_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(source for source, _ in sources("markdown")))
    assert links
    assert not [link for link in links if not (EXAMPLES / link).is_file()]


def test_the_notebook_runs(bench, monkeypatch):
    monkeypatch.chdir(bench.folder)
    names = run_notebook(BRIEF)
    frame, found = names["frame"], names["found"]
    assert list(frame["status"]) == ["done"] * 4
    assert [pair.place for pair in found.pairs] == ["digits resnet20 hw/w4a4"]
    assert names["probabilities"].shape == (10,)


@pytest.mark.slow("it runs the notebook with its own numbers, which take most of a minute")
@pytest.mark.timeout(600)
def test_the_notebook_runs_with_its_own_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_notebook({})
    assert set(names["frame"]["status"]) == {"done"}
