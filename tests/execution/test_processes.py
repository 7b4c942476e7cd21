"""A worker's main functions run code that is sent as text: `exec` can be imported everywhere."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import endings
from zsqbench.execution.processes import PATIENCE, Guard, Worker, WorkerDiedError

LIMIT = 60.0


@pytest.fixture
def worker():
    worker = Worker(1)
    yield worker
    if worker.is_alive():
        worker.end(at_once=True)


def wait_until(holds):
    deadline = time.monotonic() + LIMIT
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_returns_values_and_raises_what_was_raised(worker):
    assert worker.call(LIMIT, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        worker.call(LIMIT, divmod, 7, 0)
    with pytest.raises(SystemExit):
        worker.call(LIMIT, sys.exit, 3)
    assert worker.call(LIMIT, os.getpid) == worker.pid


def test_a_value_that_cannot_be_sent_is_an_error(worker):
    with pytest.raises(RuntimeError, match="pickle"):
        worker.call(LIMIT, eval, "lambda: 0")
    assert worker.call(LIMIT, len, "abc") == 3


def test_a_worker_that_walks_through_a_graph_makes_nothing_that_it_would_have_to_remove(worker):
    pytest.importorskip("tqdm")  # torch makes its bars with it, if it is there
    walk = """
import multiprocessing.resource_tracker as tracker
import torch
made = []
tracker.register = lambda name, kind: made.append(kind)
torch.fx.Interpreter(torch.fx.symbolic_trace(torch.nn.ReLU())).run(torch.zeros(1))
assert made == [], made
"""
    worker.call(LIMIT, exec, walk)


def test_a_worker_has_imported_nothing_of_others_and_has_started_no_thread(worker):
    modules = worker.call(LIMIT, eval, "sorted(__import__('sys').modules)")
    assert {"torch", "zsqbench_plugins.zeroq"} <= set(modules)
    assert not [name for name in modules if name.startswith(("tests", "_pytest", "zsqbench_user"))]
    assert worker.call(LIMIT, eval, "__import__('torch').cuda.is_initialized()") is False


def test_a_worker_has_the_environment_of_its_parent_as_it_is_now(monkeypatch):
    monkeypatch.setenv("ZSQBENCH_TEST", "seen")
    worker = Worker(3, gpu="7")
    try:
        names = ("ZSQBENCH_TEST", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        assert [worker.call(LIMIT, os.getenv, name) for name in names] == ["seen", "3", "7"]
    finally:
        worker.end(at_once=True)


STACK = "import sys; sys.setrecursionlimit(10**9); f = lambda x: f(*[x]) + sorted([x], key=f)[0]; f(1)"
DEATHS = {
    "exit": ("import os; os._exit(0)", "ended it with exit code 0"),
    "kill": ("import os; os.kill(os.getpid(), 9)", "signal 9 .SIGKILL.; the system may have been out of memory"),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "signal 11 .SIGSEGV."),
    "stack overflow": (STACK, "signal 11 .SIGSEGV."),
    "abort": ("import os; os.abort()", "signal 6 .SIGABRT."),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_is_found_and_named(worker, death):
    code, reason = DEATHS[death]
    with pytest.raises(WorkerDiedError, match=reason):
        worker.call(LIMIT, exec, code, {})
    assert wait_until(lambda: not worker.is_alive())


def test_a_death_is_found_where_a_child_lives_on_that_holds_all_pipes(worker):
    code = "import os, time\nif os.fork() == 0: time.sleep(600)\nos._exit(5)"
    with pytest.raises(WorkerDiedError, match="exit code 5"):
        worker.call(LIMIT, exec, code, {})


def test_a_call_that_takes_too_long_is_an_error_that_names_the_option(worker):
    with pytest.raises(ZSQBenchError, match=r"longer than 0.2 s.*--step-timeout"):
        worker.call(0.2, time.sleep, 600)


NEVER_ENDS = {
    "a thread": "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
    "a handler at exit": "import atexit, time; atexit.register(time.sleep, 600)",
    "a forked child": "import os, time\nif os.fork() == 0: time.sleep(600)",
    "a child that sleeps": "import subprocess; subprocess.Popen(['sleep', '600'])",
    "a child of another session": "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "a daemon": "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork(): os._exit(0)\n time.sleep(600)",
    "a process of multiprocessing": (
        "import multiprocessing, time\n"
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)).start()"
    ),
    "an output that does not flush": (
        "import sys, time; sys.stdout = type('S', (), {'flush': lambda self: time.sleep(600)})()"
    ),
}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("what", NEVER_ENDS)
def test_a_worker_ends_with_all_that_it_started(worker, what, at_once, monkeypatch):
    monkeypatch.setattr("zsqbench.execution.processes.PATIENCE", 0.5)
    worker.call(LIMIT, exec, NEVER_ENDS[what], {})
    below = {process.pid for process in endings.tree(worker.pid)}
    started = time.monotonic()
    worker.end(at_once=at_once)
    assert time.monotonic() - started < LIMIT / 2
    assert wait_until(lambda: all(map(has_ended, below)))


def test_a_worker_that_ends_well_needs_no_patience(worker):
    assert worker.call(LIMIT, len, "abc") == 3
    started = time.monotonic()
    worker.end(at_once=False)
    assert time.monotonic() - started < PATIENCE
    assert not worker.is_alive()


def test_the_limit_of_memory_is_an_error_in_the_step():
    worker = Worker(1, memory=2**31)
    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            worker.call(LIMIT, exec, "import torch; torch.ones(2**30)", {})
        assert worker.call(LIMIT, len, "abc") == 3
    finally:
        worker.end(at_once=True)


def test_a_limit_of_memory_that_a_worker_exceeds_at_its_start_is_told():
    worker = Worker(1, memory=2**20)
    try:
        with pytest.raises(ZSQBenchError, match=r"takes \d\.\d GiB before its first step, and --memory allows 0\.001"):
            worker.call(LIMIT, len, "abc")
    finally:
        worker.end(at_once=True)


CHILD = """
import os, subprocess
pids = os.getpid(), subprocess.Popen(["sleep", "600"]).pid
print(*pids, file=open(path, "w"))
"""
PARENT = f"""
import sys, time
from zsqbench.execution.engines import WorkerPool
pool = WorkerPool(1, 1)
pool.submit(exec, {CHILD!r}, {{"path": sys.argv[1]}}).result()
stuck = "while True: pass" if sys.argv[2] == "busy" else "import time; time.sleep(600)"
pool.submit(exec, stuck, dict())
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["busy", "asleep"])
def test_a_parent_that_is_killed_takes_its_workers_and_their_children_with_it(tmp_path, state):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "pids", state])
    assert wait_until(lambda: (tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith("\n"))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(map(has_ended, pids))
    parent.kill()
    parent.wait()
    assert wait_until(lambda: all(map(has_ended, pids)))


def test_a_guard_ends_those_that_it_was_not_told_to_leave():
    sleep = ["sleep", "600"]
    sleepers = [subprocess.Popen(sleep, start_new_session=True) for _ in range(2)]
    guard = Guard()
    for sleeper in sleepers:
        guard.watch(sleeper.pid)
    guard.leave(sleepers[0].pid)
    guard.close()
    assert [sleepers[0].poll(), sleepers[1].wait()] == [None, -signal.SIGKILL]
    sleepers[0].kill()
    sleepers[0].wait()


class Ended:
    """A process that was known, and whose number another one has."""

    def is_running(self):
        return False


@pytest.mark.parametrize("former", [None, Ended()], ids=["ended before it was known", "ended later"])
def test_another_process_with_the_number_of_one_that_has_ended_is_left_alone(former):
    sleep = ["sleep", "600"]
    sleeper = subprocess.Popen(sleep, start_new_session=True)
    endings.end_tree(sleeper.pid, former)
    time.sleep(0.1)
    assert sleeper.poll() is None
    endings.end_tree(sleeper.pid, endings.known(sleeper.pid))
    assert sleeper.wait() == -signal.SIGKILL


def test_a_guard_that_was_killed_is_no_error():
    guard = Guard()
    os.kill(guard._process.pid, signal.SIGKILL)
    guard._process.wait()
    guard.watch(1)
    guard.leave(1)
    guard.close()


def test_the_script_that_runs_a_suite_is_not_run_again_in_a_worker(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom zsqbench.execution.processes import Worker\n"
        "Path('runs').open('a').write('x')\nworker = Worker(1)\nworker.call(60, os.getpid)\nworker.end(at_once=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(endings.__file__).parents[2])}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs").read_text() == "x"
