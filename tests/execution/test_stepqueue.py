from typing import ClassVar

import pytest

from zsqbench.execution.stepqueue import Queue
from zsqbench.methods import Settings
from zsqbench.steps import Job, Outcome, Step
from zsqbench.suite import Cell

CELL = Cell("t", "m", "g", "q", "hw/w4a4", 0, Settings())


class Plain(Job):
    kind: ClassVar[str] = "plain"


class Timed(Plain):
    kind: ClassVar[str] = "timed"
    exclusive: ClassVar[bool] = True


class Aside(Plain):
    kind: ClassVar[str] = "aside"
    background: ClassVar[bool] = True


def step(name, *needs, job=Plain, order_only=()):
    return Step(job, name, name, needs, CELL, order_only=order_only)


@pytest.fixture
def outcomes():
    return {}


@pytest.fixture
def queue(outcomes):
    return Queue(outcomes)


@pytest.fixture
def settle(queue, outcomes):
    """Say what became of a step; returns what that blocks, by name."""

    def settle(step, status="done"):
        outcomes[step.key] = Outcome(status, error=None if status == "done" else f"{step.key} is {status}")
        return {blocked.key: (why.status, why.error) for blocked, why in queue.settle(step)}

    return settle


def taken(queue, *, idle=True):
    """The names of all steps that may start now."""
    names = []
    while (step := queue.take(idle=idle)) is not None:
        names.append(step.key)
    return names


def test_steps_are_taken_in_the_order_in_which_they_were_added(queue):
    queue.add([step(name) for name in "cab"])
    assert (taken(queue), len(queue)) == (["c", "a", "b"], 0)


def test_a_step_waits_for_what_it_needs_and_comes_after(queue, settle):
    first, second = step("first"), step("second")
    last = step("last", first, order_only=(second,))
    queue.add([last, first, second])
    assert taken(queue) == ["first", "second"]
    assert (settle(first), taken(queue)) == ({}, [])
    assert (settle(second), taken(queue)) == ({}, ["last"])


def test_what_neither_waits_nor_runs_is_there(queue):
    queue.add([step("second", step("cached"))])
    assert taken(queue) == ["second"]


def test_a_step_waits_for_what_runs(queue, settle):
    running = step("running")
    queue.add([step("second", running)], {"running"})
    assert taken(queue) == []
    settle(running)
    assert taken(queue) == ["second"]


@pytest.mark.parametrize("status", ["failed", "blocked", "interrupted"])
def test_a_step_that_is_not_done_blocks_what_needs_it_with_its_reason(queue, settle, status):
    first = step("first")
    queue.add([first, step("second", first), step("third", order_only=(first,)), step("other")])
    assert taken(queue) == ["first", "other"]
    why = ("blocked", f"first is {status}")
    assert settle(first, status) == {"second": why, "third": why}
    assert (taken(queue), queue.steps()) == ([], [])


def test_a_step_that_waits_already_is_added_once(queue):
    queue.add([step("a")])
    queue.add([step("a"), step("b")])
    assert taken(queue) == ["a", "b"]


def test_a_step_that_is_added_again_runs_again(queue, settle):
    first = step("first")
    second = step("second", first)
    queue.add([first, second])
    taken(queue)
    settle(first)
    assert taken(queue) == ["second"]
    queue.add([first, second])
    assert taken(queue) == ["first"]
    settle(first)
    assert taken(queue) == ["second"]


def test_background_steps_come_last_whenever_they_were_added(queue):
    queue.add([step("aside", job=Aside), step("a")])
    queue.add([step("b")])
    assert taken(queue) == ["a", "b", "aside"]


def test_an_exclusive_step_waits_until_nothing_runs(queue):
    queue.add([step("timed", job=Timed), step("a")])
    assert taken(queue, idle=False) == ["a"]
    assert taken(queue, idle=True) == ["timed"]


def test_background_steps_do_not_keep_an_exclusive_one_waiting(queue):
    queue.add([step("aside", job=Aside), step("timed", job=Timed)])
    assert taken(queue, idle=False) == []
    assert taken(queue, idle=True) == ["timed", "aside"]


def test_what_an_exclusive_step_blocks_is_no_obstacle_to_others(queue, settle):
    first = step("first")
    timed = step("timed", first, job=Timed)
    queue.add([first, timed, step("a")])
    taken(queue)
    assert settle(first, "failed") == {"timed": ("blocked", "first is failed")}
    queue.add([step("b")])
    assert taken(queue, idle=False) == ["b"]
