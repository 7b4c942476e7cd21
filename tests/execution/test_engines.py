import os
import platform
import signal
import time

import pytest

from zsqbench.execution.engines import InProcess, Pool, WorkerPool, _Here
from zsqbench.execution.processes import WorkerDiedError
from zsqbench.steps import Outcome

LIMIT = 60


def test_one_process_runs_a_step_where_it_is_submitted():
    assert os.getpid() == InProcess().start().submit(os.getpid).result()


def test_one_process_has_one_slot():
    assert InProcess(workers=4).slots() == 1


def test_one_process_hands_on_what_was_raised():
    future = _Here().submit(int, "x")
    assert isinstance(future.exception(), ValueError)


def test_one_process_lets_an_interruption_through():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _Here().submit(interrupt)


def test_the_pool_has_the_slots_that_were_asked_for():
    assert Pool(workers=3).slots() == 3


def test_the_pool_divides_the_cores_by_the_threads_of_a_step(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [Pool(threads=threads).slots() for threads in (1, 4, 16)] == [8, 2, 1]


def test_the_pool_has_one_slot_for_each_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,GPU-aa")
    assert Pool().slots() == 3


@pytest.mark.parametrize("option", [{"workers": -1}, {"threads": 0}, {"wokers": 2}])
def test_an_impossible_engine_is_refused(option):
    with pytest.raises(ValueError, match="validation error"):
        Pool(**option)


@pytest.fixture
def pool(monkeypatch):
    """Two workers. They run functions that can be imported, and start in a second, since nothing imports torch."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pool = WorkerPool(2, 1)
    yield pool
    pool.shutdown(cancel_futures=True)


def result(future):
    return future.result(LIMIT)


def wait_until_free(pool, count):
    deadline = time.monotonic() + 10
    while pool._free.qsize() < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return pool._free.qsize()


def test_a_worker_is_another_process_that_lives_for_many_steps(pool):
    outcome = Outcome("done")
    assert outcome == result(pool.submit(Outcome, "done"))
    wait_until_free(pool, 2)
    first = [worker for worker in pool._workers if worker is not None]
    for _ in range(4):
        result(pool.submit(Outcome, "done"))
    wait_until_free(pool, 2)
    assert first[0] in pool._workers


def test_a_slot_is_free_again_whatever_a_step_returned(pool):
    assert isinstance(result(pool.submit(os.getpid)), int)
    assert wait_until_free(pool, 2) == 2


def test_a_worker_in_which_a_step_failed_is_replaced_and_the_other_is_not(pool):
    result(pool.submit(Outcome, "done"))
    result(pool.submit(Outcome, "done"))
    wait_until_free(pool, 2)
    before = list(pool._workers)
    result(pool.submit(Outcome, "failed"))
    wait_until_free(pool, 2)
    assert sum(worker is not None and worker in before for worker in pool._workers) == 1


def test_a_step_that_kills_its_worker_is_the_only_one_that_fails(pool):
    good, bad = pool.submit(time.sleep, 1), pool.submit(os._exit, 3)
    with pytest.raises(WorkerDiedError, match="the step ended it with exit code 3"):
        result(bad)
    assert None is result(good)


def test_a_worker_that_died_while_it_waited_is_replaced(pool):
    result(pool.submit(Outcome, "done"))
    wait_until_free(pool, 2)
    (worker,) = [worker for worker in pool._workers if worker is not None]
    os.kill(worker.pid, signal.SIGKILL)
    while worker.is_alive():
        time.sleep(0.01)
    assert [Outcome("done")] * 3 == [result(pool.submit(Outcome, "done")) for _ in range(3)]


def test_a_pool_that_is_ended_at_once_does_not_wait_for_its_steps():
    pool = WorkerPool(1, 1)
    pool.submit(time.sleep, 30)
    time.sleep(0.5)
    started = time.monotonic()
    pool.shutdown(wait=False, cancel_futures=True)
    assert time.monotonic() - started < 5


def test_a_worker_has_one_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    pool = WorkerPool(2, 3)
    try:
        seen = [pool.submit(os.getenv, name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")]
        assert {"4", "7"} == {result(future) for future in seen}
    finally:
        pool.shutdown(cancel_futures=True)


def test_a_worker_computes_with_as_many_threads_as_a_step_may_take(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pool = WorkerPool(1, 3)
    try:
        assert result(pool.submit(os.getenv, "OMP_NUM_THREADS")) == "3"
    finally:
        pool.shutdown(cancel_futures=True)


FAULTS = """
import pathlib, resource
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [b"x" * 2**24 for _ in range(3)]
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del buffers
pathlib.Path(path).write_text(str(found))
"""
"""Notes how many pages the system hands out for as much memory as was just given back: 48 MB, pages of 4 kB."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way to keep freed memory")
def test_a_worker_keeps_freed_memory(pool, tmp_path):
    result(pool.submit(exec, FAULTS, {"path": tmp_path / "faults"}))
    assert int((tmp_path / "faults").read_text()) < 1000
