import os
import signal
import threading

import pytest

from zsqbench.execution.signals import Interrupted, Signals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_shell():
    """Handlers as a command in the foreground has them."""
    before = {number: signal.getsignal(number) for number in ALL}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ALL[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_interrupts_with_its_number(number):
    signals = Signals()
    with signals.handled(), pytest.raises(Interrupted) as interrupted:
        signal.raise_signal(number)
    assert (interrupted.value.number, signals.received) == (number, number)
    assert isinstance(interrupted.value, KeyboardInterrupt)


def test_a_signal_is_only_noted_while_something_has_to_end_well():
    signals = Signals()
    with signals.handled(), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


@pytest.mark.parametrize("number", ALL)
def test_the_second_signal_ends_the_process_at_once(number, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    signals = Signals()
    with signals.handled(), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(number)
    assert codes == [128 + number]


def test_handlers_are_what_they_were_afterwards():
    with Signals().handled():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_is_ignored_or_handled_by_others_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, print)
    with Signals().handled():
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, print)


def test_in_another_thread_nothing_is_handled():
    found = []

    def run():
        with Signals().handled():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
