import pytest
from rows import result

from zsqbench.reports.results import environment


def test_the_drop_is_what_is_lost_from_float():
    assert result().drop == 10.0


def test_there_is_no_drop_without_a_value():
    assert (result(metrics={}).drop, result(float_metrics={}).drop) == (None, None)


def test_a_metric_that_was_not_measured_has_no_value():
    assert (result(metrics={"other": 1.0}).value, result(metric=None).value) == (None, None)


def test_a_status_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="status"):
        result(status="perhaps")


def test_the_environment_names_versions_and_machine():
    assert {"zsqbench", "torch", "torchvision", "numpy", "python", "platform", "cores"} <= set(environment())


def test_the_oracle_has_the_value_of_the_same_metric():
    oracle = {"epoch": 3, "metrics": {"top1": 55.0}, "of": 4}
    assert (result(oracle=oracle).oracle_value, result().oracle_value) == (55.0, None)
    assert result(oracle=oracle, metric=None).oracle_value is None
