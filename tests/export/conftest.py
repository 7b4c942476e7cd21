"""One folder for the files of all tests: torch takes seconds to write one."""

import os

import exportnets
import pytest


@pytest.fixture(scope="session", autouse=True)
def _folder_of_files(tmp_path_factory):
    """The processes of a run of pytest share the folder, which pytest removes with its other temporary ones."""
    base = tmp_path_factory.getbasetemp()
    exportnets.FILES.append((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported")
    yield
    exportnets.FILES.clear()
