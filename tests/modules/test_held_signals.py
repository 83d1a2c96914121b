from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from futurel1.modules.held_signals import HeldSignals


@pytest.fixture
def came() -> Iterator[list[int]]:
    """Numbers of the signals that a handler of SIGUSR1 and SIGUSR2 was called with."""
    numbers: list[int] = []
    kinds = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(kind, lambda number, _: numbers.append(number)) for kind in kinds]
    yield numbers
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


def test_signals_wait_and_come_in_order(came: list[int]) -> None:
    signals = HeldSignals()
    handlers = [signal.getsignal(number) for number in signal.Signals]
    signals.hold()
    signals.hold()  # once more changes nothing
    for number in (signal.SIGUSR2, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert came == []
    signals.release()
    assert came == [signal.SIGUSR2, signal.SIGUSR1]
    assert [signal.getsignal(number) for number in signal.Signals] == handlers
    signals.release()
    assert len(came) == 2
    os.kill(os.getpid(), signal.SIGUSR1)
    assert len(came) == 3


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_is_raised_when_it_is_let_go() -> None:
    signals = HeldSignals()
    signals.hold()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_hold_nothing(came: list[int]) -> None:
    signals = HeldSignals()
    thread = threading.Thread(target=signals.hold)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert came == [signal.SIGUSR1]
