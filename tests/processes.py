"""Processes for tests, forked from a server that imports the library once: a start costs no import of ten seconds.

Where a process must be a new interpreter (`python -m`, torchrun, other environment variables at import), tests start
one themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["futurel1.cli", "futurel1.modules", "futurel1.datamodules", "lightning.pytorch.cli"])


def run_ranks(work: Callable[..., None], *args: Any, ranks: int = 2) -> None:
    """Call `work(rank, *args)` in processes of one group, and wait for all; an error in one is raised here.

    Each has as many threads as this process, since sums of other numbers of threads are rounded in other ways.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = (ranks, port, torch.get_num_threads(), work, args)
    start_processes(_rank, given, nprocs=ranks, start_method="forkserver")


def _rank(rank: int, ranks: int, port: str, threads: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    # LOCAL_RANK tells Lightning that the processes exist already.
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    os.environ |= {**group, "LOCAL_RANK": str(rank)}
    torch.set_num_threads(threads)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=600))
    work(rank, *args)
    torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter


def wait_until(ready: Callable[[], object], process: BaseProcess, log: Path) -> None:
    """Return as soon as `ready` returns something true; an error with the `log` if `process` ends before."""
    deadline = time.monotonic() + 600  # a busy machine is no failure, only a hang takes as long
    while not ready():
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


class Command:
    """A command of `futurel1` in a process and session of its own.

    Args:
        args: command line without the program's name.
        log: file for what it prints.
        paths: folders to import from besides this process's.
        dies: pattern of paths and a number n: it kills itself and all its processes with SIGKILL just before it gives
            something it has written such a name for the n-th time.
    """

    def __init__(
        self, args: Sequence[str], log: Path, paths: Sequence[Path] = (), *, dies: tuple[str, int] | None = None
    ) -> None:
        self.log = log
        inherited = dict(os.environ), torch.get_num_threads()
        given = (list(args), log, list(map(str, paths)), *inherited, dies)
        self._process = FORKED.Process(target=_command, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group."""
        return int(self._process.pid or 0)

    def wait(self) -> int:
        """Wait until it ends; returns its exit status, which is negative if a signal ended it."""
        self._process.join(600)  # a busy machine is no failure, only a hang takes as long
        assert self._process.exitcode is not None, self.log.read_text()
        return self._process.exitcode

    def finish(self) -> None:
        """Wait until it ends; an error unless it succeeds."""
        assert self.wait() == 0, self.log.read_text()

    def when(self, ready: Callable[[], object]) -> None:
        """Wait until `ready` returns something true; an error if it ends before."""
        wait_until(ready, self._process, self.log)

    def signal(self, signum: int) -> int:
        """Send a signal to it and all its processes if it still runs; returns its exit status."""
        while self._process.is_alive():
            try:
                os.killpg(self.pid, signum)
            except ProcessLookupError:  # it is no group before its first line
                time.sleep(0.002)
            else:
                break
        return self.wait()

    def kill_when(self, ready: Callable[[], object]) -> None:
        """Kill it and all its processes as soon as `ready` returns something true; an error if it ends before."""
        self.when(ready)
        self.signal(signal.SIGKILL)

    def signal_when(self, ready: Callable[[], object], signum: int) -> int:
        """Send a signal to it and all its processes as soon as `ready` returns something true; returns its exit status.

        Nothing is sent if it ends before.
        """
        while self._process.is_alive() and not ready():
            time.sleep(0.002)
        return self.signal(signum)


def _command(
    args: list[str], log: Path, paths: list[str], environment: dict[str, str], threads: int,
    dies: tuple[str, int] | None,
) -> None:  # fmt: skip
    from futurel1.cli import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    with log.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.environ |= environment
    # Its workers start as they do for a user, not by a server of their own that imports everything once more.
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.set_forkserver_preload(["__main__"])
    torch.set_num_threads(threads)  # unless told, MKL may take fewer, and rounds in other ways
    sys.path[:0] = paths
    if dies is not None:
        _die_before_naming(*dies)
    main(args)


def _die_before_naming(pattern: str, number: int) -> None:
    named = 0

    def dying(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **options: Any) -> None:
            nonlocal named
            named += fnmatch(os.fspath(target), pattern)
            if named == number:
                os.killpg(0, signal.SIGKILL)
            move(source, target, **options)

        return moved

    os.replace, os.rename = dying(os.replace), dying(os.rename)  # type: ignore[assignment]
