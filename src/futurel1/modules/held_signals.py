"""Signals that wait until the optimizer has changed all weights."""

import signal
import threading
from types import FrameType
from typing import Any


class HeldSignals:
    """Delays signals that Python code handles, so that no handler sees half-updated weights.

    A handler runs between any two lines of the main thread. SLURM's handler saves a checkpoint there, and
    `KeyboardInterrupt` may lead to one: in the middle of an optimizer's update its weights would be neither those
    before nor those after. Signals without a Python handler (SIGKILL, SIGTERM by default) still end the process.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._pending: list[tuple[int, FrameType | None]] = []

    def hold(self) -> None:
        """Remember signals from now on; does nothing outside of the main thread, which alone runs handlers."""
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        for number in signal.Signals:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending.append((number, frame))

    def release(self) -> None:
        """Put the handlers back, and call those of the signals that came, in order."""
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        pending, self._pending = self._pending, []
        for came, frame in pending:
            handlers[signal.Signals(came)](came, frame)
