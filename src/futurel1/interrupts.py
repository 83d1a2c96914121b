"""Ctrl-C and SIGTERM as a request to stop, which work answers at once or at the next place where nothing is lost."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import FrameType

__all__ = [
    "Stopped", "StoppedAtOnce", "defer", "ignore_in_worker", "is_deferred", "listen", "raise_if_requested", "requested",
    "starting_workers", "watched",
]  # fmt: skip

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """A signal ended the work; no `Exception`, because nothing but the command line handles it.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {NAMES.get(signal.Signals(signum), signal.Signals(signum).name)}")
        self.signum = signum

    @property
    def status(self) -> int:
        """Exit status of a process that the signal ends: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class StoppedAtOnce(Stopped, KeyboardInterrupt):
    """What the handler itself raises, anywhere; libraries clean up after it as after any Ctrl-C."""


@dataclass
class _State:
    """What the process was told.

    Attributes:
        watched: whether signals come here at all.
        signum: the first signal; None before it.
        when: when it came, on the monotonic clock.
        deferred: whether work asks for the request itself, so the first signal raises nothing.
        listeners: called with the number of the first signal, within its handler.
    """

    watched: bool = False
    signum: int | None = None
    when: float = 0.0
    deferred: bool = False
    listeners: list[Callable[[int], None]] = field(default_factory=list)


_state = _State()


@contextmanager
def watched() -> Iterator[None]:
    """Handle SIGINT and SIGTERM during the block: the first one is a request, the second one stops at once.

    Outside of the main thread, and for a signal that the process was started to ignore (`nohup`, `&` in a script), the
    block changes nothing.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _state = _state, _State(watched=True)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _state = outer


def requested() -> int | None:
    """The signal that asks the process to stop; None if there is none."""
    return _state.signum


def defer(deferred: bool = True) -> None:
    """Say whether the work asks for a request itself from here on; otherwise the first signal raises at once."""
    _state.deferred = deferred


def is_deferred() -> bool:
    """Whether the work asks for a request itself."""
    return _state.deferred


def listen(listener: Callable[[int], None]) -> None:
    """Call a function with the number of the first signal, within its handler; outside of :func:`watched`, never."""
    if _state.watched:
        _state.listeners.append(listener)


def raise_if_requested() -> None:
    """Stop here, if the process was asked to; for long work between two places that ask anyway.

    Raises:
        Stopped: a signal has come.
    """
    if _state.signum is not None:
        raise Stopped(_state.signum)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Have processes that the block starts begin with SIGINT and SIGTERM blocked, until :func:`ignore_in_worker`.

    Otherwise a signal for the group ends a worker that is still starting, which takes seconds where it is a new
    interpreter, or the server that workers are forked from. This process gets its signals at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_worker(*_: object) -> None:
    """Let a worker process finish what it was given: a signal for the group is for the process that started it.

    The worker ends when that process closes its queue, sends it SIGTERM itself, or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    waits = parent is not None and hasattr(signal, "sigwaitinfo")  # macOS cannot tell who sent a signal
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT} if waits else SIGNALS)
    if parent is None or not waits:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_by(sender: int) -> None:
    """End this process when `sender` sends SIGTERM; Python does that to workers that are left when it exits."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    os._exit(0)


def _repeat_seconds() -> float:
    """Seconds within which further signals mean the first one: launchers pass a terminal's Ctrl-C on once more."""
    return 2.0 if int(os.environ.get("WORLD_SIZE") or 1) > 1 else 0.5


def _handle(signum: int, frame: FrameType | None) -> None:
    if _state.signum is None:
        _state.signum, _state.when = signum, time.monotonic()
        for listener in _state.listeners:
            listener(signum)
        if not _state.deferred:
            raise StoppedAtOnce(signum)
    elif time.monotonic() - _state.when > _repeat_seconds():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # a third one ends the process, whatever it is doing
        raise StoppedAtOnce(signum)
