"""What tests of several commands need."""

from pathlib import Path

import pytest


@pytest.fixture
def broken(bench) -> Path:
    """A plugin file that does not load."""
    return bench.write("broken.py", "raise RuntimeError('no luck')")
