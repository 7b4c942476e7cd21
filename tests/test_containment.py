import contextlib
import signal
import threading
from pathlib import Path

import pytest

from zsqbench.containment import contain


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_is_kept(error):
    with contain() as contained:
        raise error
    assert contained.error is error


def test_a_call_that_ends_well_leaves_no_error():
    with contain() as contained:
        pass
    assert contained.error is None


def test_a_ctrl_c_is_raised():
    with pytest.raises(KeyboardInterrupt), contain():
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_that_was_swallowed_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), contain(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_the_handler_of_another_signal_raises_is_raised():
    class TerminatedError(BaseException):
        pass

    def end(*_):
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(TerminatedError), contain():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_of_signals_are_what_they_were():
    before = signal.getsignal(signal.SIGINT)
    with contain():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_working_folder_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contain():
        monkeypatch.chdir("/")
    assert Path.cwd() == tmp_path


def test_another_thread_keeps_what_is_raised_too():
    kept = []

    def call():
        with contain() as contained:
            raise KeyboardInterrupt
        kept.append(contained.error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert isinstance(kept[0], KeyboardInterrupt)
