import os
from types import SimpleNamespace

import pytest
from conditions import Here

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.processes import Answer, WorkerDiedError
from zsqbench.execution.reporter import CHECKPOINT
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm.group import ENDS, Group
from zsqbench.methods.engine import NotBegunError
from zsqbench.steps import Outcome
from zsqbench.store import Store

DONE, FAILED = Outcome("done"), Outcome("failed", error="no")


def group_of(folder, *functions, after=None, conditions=None):
    """A group whose jobs are functions, which a step calls."""
    jobs = tuple(SimpleNamespace(key=f"{place:064}", do=function) for place, function in enumerate(functions))
    places = tuple(after or [()] * len(jobs))
    return Group(folder, conditions or Here(), lambda _, job: job.do(), WorkerConfig(folder), jobs, places)


def raising(error):
    def function():
        raise error

    return function


def test_a_group_leaves_an_answer_of_each_step(tmp_path):
    group = group_of(tmp_path, lambda: DONE, raising(WorkerDiedError("died")), raising(ZSQBenchError("no")))
    group()
    done, died, refused = (group.answer(place) for place in range(3))
    assert (done, str(died.error), str(refused.error)) == (Answer(DONE), "died", "no")
    assert (type(died.error), type(refused.error)) == (WorkerDiedError, ZSQBenchError)


def test_an_answer_that_cannot_be_kept_is_an_error_of_its_own(tmp_path):
    group = group_of(tmp_path, lambda: lambda: None)
    group()
    assert isinstance(group.answer(0).error, RuntimeError)


def test_steps_after_one_that_failed_are_blocked_and_after_one_that_died_not_begun(tmp_path):
    begun = []
    functions = [lambda: FAILED, raising(WorkerDiedError("died")), *[lambda: begun.append("no")] * 3, lambda: DONE]
    group = group_of(tmp_path, *functions, after=[(), (), (0,), (1,), (2,), ()])
    group()
    answers = [group.answer(place) for place in range(6)]
    assert [answers[2].value, answers[4].value] == [Outcome("blocked", error="no")] * 2
    assert isinstance(answers[3].error, NotBegunError)
    assert (answers[5].value, begun) == (DONE, [])


def test_a_job_that_is_started_anew_goes_on_where_it_was(tmp_path, monkeypatch):
    called = []

    def is_lost():
        called.append("b")
        if called.count("b") == 1:
            raise SystemExit  # as submitit does where it has put the job back

    group = group_of(tmp_path, lambda: called.append("a"), is_lost)
    with pytest.raises(SystemExit):
        group()
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    group()
    assert (called, group.nodes()[-1], len(group.nodes())) == (["a", "b", "b"], "n2", 2)


@pytest.mark.parametrize("comes_further", [False, True])
def test_a_step_whose_job_is_ended_again_and_again_fails_unless_it_comes_further(tmp_path, monkeypatch, comes_further):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    group = group_of(tmp_path, lambda: DONE)
    checkpoint = Store(tmp_path).partial(group.jobs[0].key) / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    for number in range(ENDS):
        assert group._ended_too_often(0) is None
        if comes_further:
            checkpoint.touch()
            os.utime(checkpoint, ns=(number + 1, number + 1))
    group()
    error = f"its job was ended {ENDS} times without progress, on n1"
    assert group.answer(0).value == (DONE if comes_further else Outcome("failed", error=error))


def test_a_node_with_a_fault_does_no_step(tmp_path):
    group = group_of(tmp_path, raising(AssertionError), conditions=Here("has torch 2.5.0 in place of 2.6.0"))
    group()
    assert (group.fault(), group.answer(0), group.begun(0)) == ("has torch 2.5.0 in place of 2.6.0", None, False)
