import pytest


def test_equal_steps_of_two_cells_run_once(bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run()
    assert bench.calls() == ["load a", "load a", "evaluate", "generate 0", "quantize 0", "evaluate", "quantize 0", "evaluate"]
