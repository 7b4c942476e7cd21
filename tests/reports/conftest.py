"""MLflow as tests of several files need it."""

import pytest
from tracked import fill

from zsqbench.reports.mlflow.database import DEFAULTS
from zsqbench.store import Store


@pytest.fixture(scope="module", autouse=True)
def environment():
    """MLflow's own environment variables, and none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_RUN_ID", "f" * 32)  # what a stray one breaks: mlflow issue 15713
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory, environment):
    """A store whose database is there: making one takes seconds."""
    store = Store(tmp_path_factory.mktemp("home"))
    fill(store)
    return store
