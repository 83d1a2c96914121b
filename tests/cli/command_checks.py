"""What tests of commands share."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from futurel1.cli import main


def python(module: str, *args: str) -> None:
    """Run a module in a process of its own, as a user does."""
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def command_of_rank(rank: int, *args: str) -> None:
    main(args)


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
