"""What holds for each shipped method alike; their own tests vary options and schemes, on one network."""

import pytest

from zsqbench.plugins import load_plugins
from zsqbench.testing.conformance import check_method, reduce_options

METHODS = [
    method.method
    for (kind, name), method in sorted(load_plugins().provided.items())
    if kind in ("generator", "quantizer") and name not in {"file", "mixed"}  # which need a file, and a quantizer
]


SHORT = {"epochs": 2, "updates_per_epoch": 2}
"""Training that is long enough for the checks, which go through it some forty times."""


def failures(method):
    """The checks that fail."""
    given = SHORT if method.model_fields.keys() >= SHORT.keys() else {}
    checked = check_method(*reduce_options(method, given))
    assert len(checked.findings) > 3
    return [finding for finding in checked.findings if finding.outcome == "FAILED"]


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract(method):
    assert failures(method) == []


@pytest.mark.slow("it makes every check of every method, which takes minutes")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract_on_all_networks_and_schemes(method):
    assert failures(method) == []
