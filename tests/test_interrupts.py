"""Signals as requests: the first one asks, the second one stops at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from futurel1 import interrupts
from futurel1.interrupts import Stopped, StoppedAtOnce, defer, listen, raise_if_requested, requested, watched

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does, the handlers are those from before; a shell's background processes ignore SIGINT."""
    outer = {SIGINT: signal.signal(SIGINT, signal.default_int_handler), SIGTERM: signal.signal(SIGTERM, signal.SIG_DFL)}
    yield
    after = {number: signal.getsignal(number) for number in outer}
    for number, handler in outer.items():
        signal.signal(number, handler)
    assert after == {SIGINT: signal.default_int_handler, SIGTERM: signal.SIG_DFL}


@pytest.mark.parametrize(("number", "status", "words"), [(SIGINT, 130, "Ctrl-C"), (SIGTERM, 143, "SIGTERM")])
def test_a_signal_stops_work_that_does_not_ask(number: int, status: int, words: str) -> None:
    assert requested() is None
    with pytest.raises(KeyboardInterrupt) as caught, watched():
        signal.raise_signal(number)
    assert isinstance(caught.value, StoppedAtOnce)
    assert caught.value.status == status
    assert str(caught.value) == f"stopped by {words}"
    assert requested() is None


def test_work_that_asks_is_stopped_where_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    with watched():
        listen(told.append)
        defer()
        raise_if_requested()
        signal.raise_signal(SIGTERM)
        signal.raise_signal(SIGINT)  # at the same moment: a launcher that passes a terminal's signal on
        assert (requested(), told) == (SIGTERM, [SIGTERM])
        with pytest.raises(Stopped) as caught:
            raise_if_requested()
        assert caught.value.status == 143
        assert not isinstance(caught.value, KeyboardInterrupt | Exception)
        now = time.monotonic()
        monkeypatch.setattr(interrupts.time, "monotonic", lambda: now + 60)
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(SIGINT)
        assert signal.getsignal(SIGINT) == signal.getsignal(SIGTERM) == signal.SIG_DFL  # a third one kills
    with watched():
        assert requested() is None  # a new command begins anew
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(SIGINT)


def test_a_terminals_signal_comes_twice_to_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    now = time.monotonic()
    with watched():
        defer()
        signal.raise_signal(SIGINT)
        monkeypatch.setattr(interrupts.time, "monotonic", lambda: now + 1)
        signal.raise_signal(SIGINT)
        monkeypatch.setattr(interrupts.time, "monotonic", lambda: now + 3)
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(SIGINT)


def test_what_the_process_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(SIGINT, signal.SIG_IGN)
    try:
        with watched():
            signal.raise_signal(SIGINT)
            assert requested() is None
        assert signal.getsignal(SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(SIGINT, before)


def test_other_threads_change_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        before = signal.getsignal(SIGTERM)
        with watched():
            found.append(signal.getsignal(SIGTERM) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def work(ready: Path) -> None:
    interrupts.ignore_in_worker(0)
    for number in (SIGINT, SIGTERM):
        os.kill(os.getpid(), number)  # as anybody but the parent
    ready.touch()
    time.sleep(600)


def test_a_worker_outlives_the_signals_of_its_group_but_not_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    worker = multiprocessing.get_context("fork").Process(target=work, args=(ready,))
    worker.start()
    while not ready.exists():
        assert worker.is_alive()
        time.sleep(0.01)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


class SignalsItsGroup:
    """An argument of a worker that sends signals to the group when the worker reads it, before its first line."""

    def __init__(self, *signals: int) -> None:
        self.signals = signals

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for number in self.signals:
            os.killpg(0, number)


def answer(end: Any, argument: SignalsItsGroup) -> None:
    interrupts.ignore_in_worker(0)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    end.send((len(argument.signals), SIGINT in blocked))


def lead(method: str, end: Any) -> None:
    os.setsid()
    signal.signal(SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(method, force=True)
    with watched():
        defer()
        near, far = multiprocessing.Pipe()
        for argument in (SignalsItsGroup(SIGINT, SIGTERM), SignalsItsGroup()):  # the second one of the same server
            worker = multiprocessing.Process(target=answer, args=(far, argument))
            with interrupts.starting_workers():
                worker.start()
            worker.join(60)
            end.send((near.recv() if near.poll() else "nothing", requested()))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_outlive_a_signal_for_their_group_while_they_start(method: str) -> None:
    near, far = multiprocessing.Pipe()
    # A new interpreter, which knows nothing of the server that other tests fork from.
    leader = multiprocessing.get_context("spawn").Process(target=lead, args=(method, far))
    leader.start()
    for sent in (2, 0):
        assert near.poll(120)
        answered, signum = near.recv()
        assert answered == (sent, False)
        assert signum in (SIGINT, SIGTERM)
    leader.join(60)
    assert leader.exitcode == 0
