"""Signals as requests: the first one asks, the second one stops at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

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
