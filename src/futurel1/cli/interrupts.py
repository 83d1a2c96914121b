"""How a command stops: with a line that says how to go on, and exit status 130 (Ctrl-C) or 143 (SIGTERM)."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from futurel1 import interrupts
from futurel1.interrupts import Stopped
from futurel1.launch import Launch

__all__ = ["Progress", "exit_when_stopped", "progress_of"]

RESUMABLE_TOOLS = ("curate", "world")
"""Tools that go on where they stopped if they are called again."""


@dataclass
class Progress:
    """What a command has done, for the line that says how to go on.

    Args:
        command: the command.
        run: its run folder; None for tools, and before it is chosen.
        done: what was finished, such as ``3 steps``.
    """

    command: str
    run: Path | None = None
    done: str = ""

    def advice(self) -> str:
        """How to go on."""
        again = "start the same command again"
        if self.command in RESUMABLE_TOOLS:
            return f"{again}; it goes on where it stopped"
        if self.run is None or self.command not in ("fit", "predict"):
            return again
        resume = f"continue with: futurel1 {self.command} --resume {shlex.quote(str(self.run))}"
        if self.command == "fit":
            found = any((self.run / "checkpoints").glob("*.ckpt"))
            return resume if found else f"there is no checkpoint yet: {again}"
        return resume if (self.run / "config.yaml").is_file() else again


_progress = Progress("")


def progress_of(command: str, run: Path | None = None) -> Progress:
    """Begin to note the progress of a command; returns the note, to be changed in place."""
    global _progress
    _progress = Progress(command, run)
    return _progress


def done(what: str) -> None:
    """Note what the command has finished so far."""
    _progress.done = what


@contextmanager
def exit_when_stopped(command: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM during the block into one line on standard error and the exit status of the signal.

    Args:
        command: the command that runs.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    progress_of(command)
    with interrupts.watched():
        try:
            yield
        except (Stopped, SystemExit) as error:
            stopped = error if isinstance(error, Stopped) else _replaced(error)
            if stopped is None:
                raise
        else:
            return
        if _launched_by_lightning():
            raise SystemExit(0)  # Lightning kills the first process where another one fails
        if Launch.detect().is_first:
            after = f" after {_progress.done}" if _progress.done else ""
            print(f"futurel1: {stopped}{after}; {_progress.advice()}", file=sys.stderr, flush=True)
        raise SystemExit(stopped.status)


def _replaced(error: SystemExit) -> Stopped | None:
    """The stop that Lightning replaced by an exit with status 1; None for any other exit."""
    cause = error.__context__
    return cause if isinstance(cause, Stopped) else None


def _launched_by_lightning() -> bool:
    """Whether a Trainer in another process started this one."""
    launch = Launch.detect()
    return launch.launcher == "environment" and not launch.is_first
