"""The latency step: it runs alone, and what a row and people see of it."""

from zsqbench.steps.latency import Latency, _compared
from zsqbench.steps.runtime import Runtime
from zsqbench.store import Store

KEY = "a" * 64


def stored(tmp_path, times):
    """A store with an artifact of these times."""
    store = Store(tmp_path)
    store.write(Latency.kind, KEY, {"content": {"times": times, "processor": "A CPU"}})
    return store


def both(quantized, plain):
    return {"quantized": {"p50": quantized, "p95": 2 * quantized}, "float": {"p50": plain, "p95": 2 * plain}}


def test_it_runs_while_nothing_else_does_and_its_cell_waits_for_it():
    assert Latency.exclusive
    assert (Latency.final, Runtime.final, Runtime.exclusive) == (True, True, False)


def test_a_row_has_medians_and_percentiles_of_both_files_by_batch_size(tmp_path):
    store = stored(tmp_path, {"1": both(1.5, 3.0), "16": both(20.0, 10.0)})
    assert Latency.row(store, {"latency": KEY}) == {
        "metrics": {
            "onnxruntime/p50_ms": 1.5,
            "onnxruntime/p95_ms": 3.0,
            "onnxruntime/float_p50_ms": 3.0,
            "onnxruntime/float_p95_ms": 6.0,
            "onnxruntime/p50_ms_batch16": 20.0,
            "onnxruntime/p95_ms_batch16": 40.0,
            "onnxruntime/float_p50_ms_batch16": 10.0,
            "onnxruntime/float_p95_ms_batch16": 20.0,
        }
    }


def test_people_are_told_where_integers_are_slower():
    assert _compared(1.5, 3.0) == "2.00 x faster"
    assert _compared(3.0, 3.0) == "1.00 x faster"
    assert _compared(3.0, 1.5) == "2.00 x SLOWER than float"
