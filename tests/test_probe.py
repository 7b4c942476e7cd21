import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from zsqbench import probe
from zsqbench.probe import find_fatal


def crash():
    ctypes.string_at(0)


def fail():
    raise KeyboardInterrupt


ENDINGS = {
    "ended the process with exit code 0": partial(os._exit, 0),
    "ended the process with exit code 7": partial(os._exit, 7),
    "ended the process with signal 11 (SIGSEGV)": crash,
    "ended the process with signal 6 (SIGABRT)": os.abort,
    "replaced the process by another program": partial(os.execvp, "sleep", ["sleep", "60"]),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_an_action_that_ends_the_process_is_named_with_how(how, monkeypatch):
    monkeypatch.setattr(probe, "END_SECONDS", 0.1)
    assert find_fatal([fail, ENDINGS[how], fail]) == {1: how}


def test_each_of_several_is_found():
    assert set(find_fatal([partial(os._exit, 0), fail, partial(os._exit, 1)])) == {0, 2}


def test_what_is_harmless_leaves_nothing(capfd):
    def talk():
        sys.stdout.write("out")
        sys.stderr.write("err")
        os.write(2, b"raw")
        os.environ["ZSQBENCH_PROBED"] = "1"

    assert find_fatal([talk]) == {}
    assert (capfd.readouterr(), "ZSQBENCH_PROBED" in os.environ) == (("", ""), False)


def test_a_crash_is_not_heard(capfd):
    assert find_fatal([crash])
    assert capfd.readouterr() == ("", "")


def test_no_handler_of_the_parent_runs_at_the_end_of_a_copy(python):
    done = python("""
        import atexit
        from zsqbench.probe import find_fatal
        atexit.register(print, "at exit")
        print("begun")
        find_fatal([lambda: None])
    """)
    assert (done.stdout, done.stderr) == ("begun\nat exit\n", "")


def test_a_child_of_a_copy_that_holds_the_connection_does_not_hold_the_parent():
    def leave_a_child():
        if os.fork():
            os._exit(3)
        time.sleep(60)

    assert find_fatal([leave_a_child]) == {0: "ended the process with exit code 3"}


def test_where_no_copy_can_be_made_nothing_is_fatal(monkeypatch):
    def refuse():
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    assert find_fatal([crash]) == {}


def test_a_copy_computes_with_torch_without_the_threads_that_it_lost():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _ = torch.ones(512, 512) @ torch.ones(512, 512)
        assert find_fatal([lambda: torch.ones(512, 512) @ torch.ones(512, 512)]) == {}
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_ends_the_wait_for_an_action_that_hangs_and_the_action(tmp_path):
    code = f"""
import os, time
from pathlib import Path
from zsqbench.probe import find_fatal

def hang():
    Path({str(tmp_path)!r}, "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(1)

find_fatal([hang])
"""
    command = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    pid = wait_for(lambda: int((tmp_path / "pid").read_text()))
    command.send_signal(signal.SIGINT)
    assert command.wait(20) == -signal.SIGINT
    wait_for(lambda: not is_alive(pid) or None)


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_for(ask):
    """Its answer, once it comes."""
    for _ in range(2000):
        with contextlib.suppress(OSError, ValueError):
            if (answer := ask()) is not None:
                return answer
        time.sleep(0.01)
    pytest.fail("nothing happened")
