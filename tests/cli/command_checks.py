"""What tests of commands share."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from futurel1.cli import main
from processes import FORKED


def python(module: str, *args: str) -> None:
    """Run a module in a process of its own, as a user does."""
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def command_of_rank(rank: int, *args: str) -> None:
    main(args)


def run_tasks(folder: Path, environments: Sequence[Mapping[str, str]], *args: str) -> list[tuple[int, str]]:
    """Run one command in several processes at once, as a launcher does; their exit statuses and outputs."""
    logs = [folder / f"task-{number}.log" for number in range(len(environments))]
    pairs = zip(environments, logs, strict=True)
    tasks = [FORKED.Process(target=_task, args=(dict(environment), log, args)) for environment, log in pairs]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(300)
        task.kill()
    return [(task.exitcode or 0, log.read_text()) for task, log in zip(tasks, logs, strict=True)]


def _task(environment: dict[str, str], log: Path, args: Sequence[str]) -> None:
    with log.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.environ |= environment
    torch.set_num_threads(1)
    main(list(args))


class RequeueSignal(Callback):
    """Sends the signal with which SLURM announces the end of a job, after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGUSR1)


def metrics(run: Path, *columns: str) -> list[list[str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [[row[column] for column in columns] for row in csv.DictReader(stream) if row[columns[-1]]]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("futurel1: error: ")
    return error
