"""What holds for each shipped method alike; their own tests vary options and schemes, on one network."""

import pytest

from zsqbench.plugins import load_plugins
from zsqbench.testing import conformance, generators, quantizers
from zsqbench.testing.conformance import check_method, reduce_options
from zsqbench.testing.networks import tiny_teachers

METHODS = [
    method.method
    for (kind, name), method in sorted(load_plugins().provided.items())
    if kind in ("generator", "quantizer") and name not in {"file", "mixed"}  # which need a file, and a quantizer
]


SHORT = {"epochs": 2, "updates_per_epoch": 2}
"""Training that is long enough for the checks, which go through it some forty times."""

BRIEFLY = ("plain BN", "residual, concat and SiLU")
"""Half of the networks; the methods' own tests have others."""


def failures(method):
    """The checks that fail."""
    given = SHORT if method.model_fields.keys() >= SHORT.keys() else {}
    checked = check_method(*reduce_options(method, given))
    assert len(checked.findings) > 3
    return [finding for finding in checked.findings if finding.outcome == "FAILED"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract(method, monkeypatch):
    networks = {name: network for name, network in tiny_teachers().items() if name in BRIEFLY}
    for examination in (generators, quantizers):
        monkeypatch.setattr(examination, "tiny_teachers", lambda: networks)
    monkeypatch.setattr(conformance, "SCHEMES", conformance.SCHEMES[:1])
    monkeypatch.setattr(quantizers, "IMAGES", 16)  # two batches of what is read, as 32 are four
    assert failures(method) == []


@pytest.mark.slow("it makes every check of every method, which takes minutes")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract_on_all_networks_and_schemes(method):
    assert failures(method) == []
