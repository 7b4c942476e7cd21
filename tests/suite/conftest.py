"""A suite as tests of several files load it."""

import pytest

from zsqbench.suite import load_suite


@pytest.fixture
def load(bench):
    def load(text=None, *overrides, data_root=None):
        if text is not None:
            bench.suite(text)
        return load_suite(bench.file, without=["mlflow"], overrides=overrides, data_root=data_root)

    return load
