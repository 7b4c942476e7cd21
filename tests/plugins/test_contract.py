"""What holds for each shipped method alike; their own tests vary options and schemes, on one network."""

import pytest

from zsqbench.plugins import load_plugins
from zsqbench.testing import conformance
from zsqbench.testing.conformance import check_method, reduce_options

METHODS = [
    method.method
    for (kind, name), method in sorted(load_plugins().provided.items())
    if kind in ("generator", "quantizer") and name not in {"file", "mixed"}  # which need a file, and a quantizer
]


SHORT = {"epochs": 2, "updates_per_epoch": 2}
"""Training that is long enough for the checks, which go through it some forty times."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract(method, monkeypatch):
    monkeypatch.setattr(conformance, "SCHEMES", conformance.SCHEMES[:2])  # the third is that of test_qdq.py
    given = SHORT if method.model_fields.keys() >= SHORT.keys() else {}
    checked = check_method(*reduce_options(method, given))
    assert [finding for finding in checked.findings if finding.outcome == "FAILED"] == []
    assert len(checked.findings) > 3
