"""What tests of several commands need."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def broken(bench) -> Path:
    """A plugin file that does not load."""
    return bench.write("broken.py", "raise RuntimeError('no luck')")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder for what the first run of the plain suite makes."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def ran(bench, finished):
    """The bench after a run of its plain suite, which the first test makes and the others copy."""
    made = {name: finished / name for name in ("home", "results")}
    if made["home"].is_dir():
        for name, folder in made.items():
            shutil.copytree(folder, bench.folder / name)
    else:
        assert bench.run().code == 0
        for name, folder in made.items():
            shutil.copytree(bench.folder / name, folder)
    return bench
