"""Checks of methods, without the one that takes as long as all others."""

import pytest

from zsqbench.testing import generators, quantizers


@pytest.fixture
def measured():
    """Measure memory, too."""


@pytest.fixture(autouse=True)
def _unmeasured(request, monkeypatch):
    if "measured" not in request.fixturenames:
        for examination in (generators, quantizers):
            monkeypatch.setattr(examination, "check_memory", lambda *_: None)
