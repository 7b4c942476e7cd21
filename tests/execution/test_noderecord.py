from types import SimpleNamespace

import pytest

from zsqbench.execution.noderecord import FAILURES, Ended, NodeRecord
from zsqbench.steps import Outcome

DONE, FAILED = Outcome("done"), Outcome("failed", error="no")


def ended(key, outcome=FAILED):
    return Ended(SimpleNamespace(key=key), outcome)


def test_an_engine_without_nodes_settles_each_end_at_once():
    one = ended("a")
    assert NodeRecord().settled(None, one) == [one]


@pytest.mark.parametrize("outcome", [DONE, Outcome("blocked"), Outcome("interrupted")])
def test_only_failures_are_held_back(outcome):
    one = ended("a", outcome)
    assert NodeRecord().settled("n1", one) == [one]


def test_a_failure_is_its_own_once_its_node_has_done_a_step():
    record, one, two, done = NodeRecord(), ended("a"), ended("b"), ended("c", DONE)
    assert (record.settled("n1", one), record.held, record.holds) == ([], {"a"}, True)
    assert (record.settled("n1", done), record.held, record.holds) == ([one, done], set(), False)
    assert record.settled("n1", two) == [two]


def test_a_node_is_bad_that_fails_several_steps_while_another_does_its_own():
    record, failures = NodeRecord(), [ended(str(number)) for number in range(FAILURES)]
    for one in failures:
        assert record.settled("n1", one) == []
    assert record.bad() == {}  # it may be that all steps fail everywhere
    record.settled("n2", ended("done", DONE))
    assert record.bad() == {"n1": failures}
    assert (record.bad(), record.holds) == ({}, False)
    again = ended("0")
    assert record.settled("n3", again) == [again]  # it failed elsewhere, too


def test_a_node_with_fewer_failures_is_not_judged():
    record = NodeRecord()
    record.settled("n2", ended("done", DONE))
    for number in range(FAILURES - 1):
        record.settled("n1", ended(str(number)))
    assert record.bad() == {}
    assert [each.step.key for each in record.give_up()] == ["0", "1"]
    assert not record.holds
