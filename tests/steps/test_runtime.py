"""The onnxruntime step: what a row says of a file beside the simulation, and what people must know."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from zsqbench.methods import Evaluation
from zsqbench.steps import evaluations
from zsqbench.steps.evaluate import Evaluate
from zsqbench.steps.runtime import Runtime
from zsqbench.store import Store

KEYS = {"onnxruntime": "a" * 64, "evaluate": "b" * 64}
NUMBERS = {"integer_layers": 2, "layers": 3, "equal_exact": 100.0, "size_mb": 0.5}


def store_of(tmp_path, predictions=(1, 2, 3, 4), problems=()):
    """A store with what both steps leave; the simulation predicts 1, 2, 3, 4."""
    store = Store(tmp_path)
    measured = {"metrics": {"top1": 75}, "numbers": NUMBERS, "problems": list(problems)}

    def samples(values):
        return lambda folder: evaluations.write_samples(folder, Evaluation({}, (), values))

    store.write(Runtime.kind, KEYS["onnxruntime"], {"content": measured}, samples(predictions))
    store.write(Evaluate.kind, KEYS["evaluate"], {"content": {}}, samples((1, 2, 3, 4)))
    return store


def test_a_row_has_the_tasks_metrics_in_the_runtime_equal_predictions_and_figures_of_the_file(tmp_path):
    metrics = {"top1": 75.0, "equal": 75.0, **NUMBERS}
    row = Runtime.row(store_of(tmp_path, (1, 2, 9, 4)), KEYS)
    assert row == {"metrics": {f"onnxruntime/{name}": value for name, value in metrics.items()}}


def test_problems_are_footnotes(tmp_path):
    row = Runtime.row(store_of(tmp_path, problems=["it departs first at tensor relu"]), KEYS)
    assert row["footnotes"] == ["onnxruntime: it departs first at tensor relu"]


def test_networks_that_predict_no_classes_have_no_equal_predictions(tmp_path):
    assert "onnxruntime/equal" not in Runtime.row(store_of(tmp_path, ()), KEYS)["metrics"]


@pytest.mark.parametrize(("only_there", "only_here", "departs"), [(0, 0, False), (3, 3, False), (12, 0, True)])
def test_an_accuracy_departs_where_samples_are_right_on_one_side_alone(tmp_path, only_there, only_here, departs):
    rest = 60 - only_there - only_here
    simulated = [True] * only_there + [False] * only_here + [True] * rest
    found = [False] * only_there + [True] * only_here + [True] * rest
    store = Store(tmp_path)
    packed = {evaluations.CORRECT: np.packbits(np.array(simulated))}
    store.write(
        Evaluate.kind, KEYS["evaluate"], {"content": {}}, lambda folder: save_file(packed, folder / evaluations.SAMPLES)
    )
    job = Runtime.model_construct(needs={Evaluate.kind: KEYS["evaluate"]})
    text = job._accuracy_departs(store, Evaluation({}, found))
    assert (text is not None) == departs
    if departs:
        assert text == (
            "its accuracy differs from the simulation: 12 samples are right only in the simulation, "
            "0 only in the runtime"
        )


def test_a_task_that_tells_nothing_of_single_samples_has_no_accuracy_that_departs(tmp_path):
    store = store_of(tmp_path, predictions=())
    job = Runtime.model_construct(needs={Evaluate.kind: KEYS["evaluate"]})
    assert job._accuracy_departs(store, Evaluation({"mAP": 16.0})) is None
