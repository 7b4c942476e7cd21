import json
import tomllib
from pathlib import Path

import pytest

import zsqbench

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", zsqbench.__all__)
def test_every_public_name_is_there(name):
    assert getattr(zsqbench, name).__module__.startswith(("zsqbench.", "pluggy", "typing", "pathlib"))


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zsqbench' has no attribute 'Quantiser'"):
        _ = zsqbench.Quantiser


def test_every_package_is_installed():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    places = {name.replace(".", "/"): name for name in table["packages"]}
    folders = [*(ROOT / "zsqbench").rglob("__init__.py"), *(ROOT / "plugins").rglob("__init__.py")]
    found = {str(path.parent.relative_to(ROOT)).replace("plugins", "zsqbench_plugins", 1) for path in folders}
    assert found <= set(places)


@pytest.fixture
def imported(python, bench):
    """Which of these modules a command imports, with the plugins that are installed."""

    def imported(*arguments):
        done = python(
            f"""
            import json, sys
            from zsqbench.cli import main
            try:
                main({[str(argument) for argument in arguments]!r})
            except SystemExit as end:
                heavy = ("torch", "torchvision", "mlflow", "pandas", "pydantic", "numpy", "rich", "jinja2")
                print("\\n" + json.dumps([end.code, *(name for name in heavy if name in sys.modules)]))
            """
        )
        code, *modules = json.loads(done.stdout.splitlines()[-1])
        assert code in (0, None), done.stderr
        return set(modules)

    return imported


def test_importing_zsqbench_imports_next_to_nothing(python):
    done = python(
        "import sys, zsqbench; print(sorted({'pydantic', 'torch', 'mlflow', 'click', 'yaml'} & {*sys.modules}))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_help_imports_nothing_heavy(imported):
    assert set() == imported("--help")


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_help_of_a_command_imports_nothing_heavy(imported, command):
    assert set() == imported(command, "--help")


def test_planning_imports_neither_torch_nor_mlflow(imported, bench):
    assert set() == imported("plan", bench.file, *bench.places()) & {"torch", "torchvision", "mlflow", "pandas"}


def test_listing_plugins_imports_neither_torch_nor_mlflow(imported):
    assert set() == imported("plugins", "list") & {"torch", "torchvision", "mlflow", "pandas"}


def test_a_new_method_is_written_without_torch_and_mlflow(imported, bench):
    new = imported("plugins", "new", "generator", "brand_new", "--into", bench.folder)
    assert set() == new & {"torch", "torchvision", "mlflow", "pandas"}


def test_the_leaderboard_imports_neither_torch_nor_mlflow(imported, bench):
    bench.run()
    assert set() == imported("leaderboard", bench.file, "--results", bench.results) & {"torch", "torchvision", "mlflow"}


@pytest.mark.slow("it starts two commands")
def test_a_comparison_imports_neither_torch_nor_mlflow(imported, bench):
    bench.matrix("quantizer: toyq", "quantizer: datafree, generator: none")
    bench.run()
    compared = imported("compare", bench.file, "toyq", "none", "--results", bench.results, "--home", bench.home)
    assert set() == compared & {"torch", "torchvision", "mlflow"}


@pytest.mark.slow("it starts a command")
def test_reproducing_without_a_run_imports_neither_torch_nor_mlflow(imported, bench):
    shown = imported("reproduce", "hast", "1a", "hast:hast", "--data-root", bench.folder, *bench.places())
    assert set() == shown & {"torch", "torchvision", "mlflow", "pandas"}


@pytest.mark.slow("it starts two commands")
def test_a_report_imports_neither_torch_nor_mlflow(imported, bench, monkeypatch):
    bench.matrix("")
    bench.run()
    command = ("report", bench.file, "--results", bench.results, "--home", bench.home)
    # the second report takes the libraries of the first
    monkeypatch.setattr("zsqbench.reports.site.writing._charts", lambda: "charts")
    assert bench.zsqbench(*command).code == 0
    assert set() == imported(*command) & {"torch", "torchvision", "mlflow"}


def test_a_run_with_workers_does_not_import_torch_in_the_parent(python, bench):
    bench.matrix("")
    bench.run()
    done = python(
        f"""
        import sys
        from zsqbench.cli import main
        try:
            main({["run", str(bench.file), "--no-plugin", "mlflow", *map(str, bench.places())]!r})
        finally:
            print(sorted({{"torch", "mlflow"}} & {{*sys.modules}}))
        """
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
