"""What holds for each shipped method alike; their own tests vary options and schemes, on one network."""

import pytest

from zsqbench.plugins import load_plugins
from zsqbench.testing import generators, quantizers
from zsqbench.testing.conformance import check_method, reduce_options

METHODS = [
    method.method
    for (kind, name), method in sorted(load_plugins().provided.items())
    if kind in ("generator", "quantizer") and name not in {"file", "mixed"}  # which need a file, and a quantizer
]


SHORT = {"epochs": 2, "updates_per_epoch": 2}
"""Training that is long enough for the checks, which go through it some forty times."""
SHORTER = ("iterations", "weight_iterations", "activation_iterations", "correction_steps", "warmup", "range_updates")
"""Options that are two in the brief checks: a state of an optimizer that is not kept still shows in the second."""
MEASURED = {"rtn", "adaround", "lsq", "dgh", "genie", "task_boxes", "zeroq"}
"""Methods whose memory is measured each time, which takes as long as all other checks; one of each kind."""


def failures(method, given):
    """The checks that fail."""
    checked = check_method(*reduce_options(method, given))
    assert len(checked.findings) > 3
    return [finding for finding in checked.findings if finding.outcome == "FAILED"]


def short(method):
    """Options of a method that trains for which it does so briefly."""
    return SHORT if method.model_fields.keys() >= SHORT.keys() else {}


def shorter(method):
    """The same for the brief checks. One that reads images has to come across most of them."""
    fields = method.model_fields
    numbers = {option: 2 for option in SHORTER if option in fields and not isinstance(fields[option].default, float)}
    reads_nothing = method.kind == "quantizer" and not method.needs_images
    once = {"updates_per_epoch": 1} if reads_nothing and short(method) else {}
    return short(method) | numbers | once


VARIANTS = {
    *("brecq", "qdrop", "flexround", "genie_m", "pd_quant"),  # of what adaround does
    *("hast", "synq", "plf", "ait"),  # of what ste does
    *("gdfq", "qimera", "adasg"),  # of what adadfq does
}
"""Quantizers that learn by the code of another one. Their own tests run each time."""
LATER = pytest.mark.slow("another method that learns by the same code is checked each time")


def is_later(method):
    """True for variants among quantizers. The generator `hast` shares a name with one."""
    return method.kind == "quantizer" and method.name in VARIANTS


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=LATER if is_later(method) else ()) for method in METHODS],
    ids=lambda method: method.name,
)
def test_every_method_keeps_the_contract(method, monkeypatch):
    if method.name not in MEASURED:
        for examination in (generators, quantizers):
            monkeypatch.setattr(examination, "check_memory", lambda *_: None)
    assert failures(method, shorter(method)) == []


@pytest.mark.slow("it makes every check of every method, which takes minutes")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_the_contract_on_all_networks_and_schemes(method):
    assert failures(method, short(method)) == []
