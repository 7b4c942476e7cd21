"""The options of an export, and those that it refuses."""

import pytest
from pydantic import ValidationError

from zsqbench.export import IR_VERSION, OPSET
from zsqbench.export.options import ExportOptions


def test_defaults_are_a_file_that_released_runtimes_run_with_integers():
    options = ExportOptions()
    assert (options.opset, options.weights, options.input, options.providers) == (
        21,
        "int8",
        "float",
        ("CPUExecutionProvider",),
    )
    assert (OPSET, IR_VERSION) == (21, 10)


@pytest.mark.parametrize(
    "given",
    [
        {"opset": 20},
        {"opset": 26},
        {"check": 0},
        {"weights": "int2"},
        {"input": "int8"},
        {"providers": ()},
        {"batch": 1},
    ],
)
def test_what_no_file_can_be_is_refused(given):
    with pytest.raises(ValidationError):
        ExportOptions(**given)
